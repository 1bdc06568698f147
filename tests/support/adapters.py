"""LoRA adapters of random weights, as PEFT writes them, and the models that they make."""

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

RANK, ALPHA = 8, 16


@dataclass(frozen=True)
class Adapter:
    """``pairs`` of A (rank, inputs) and B (outputs, rank), by module."""

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def random(cls, weights: Mapping[str, torch.Tensor], layers: Collection[str]) -> "Adapter":
        """One for ``layers``, as PEFT would call them, outside routed experts."""
        torch.manual_seed(0)
        found = [name.removesuffix(".weight") for name in weights if name.split(".")[-2] in layers]
        return cls({name: _pair(weights[f"{name}.weight"]) for name in found if ".experts." not in name})

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], module: str) -> "Adapter":
        """One for a single module."""
        return cls({module: _pair(weights[f"{module}.weight"])})

    def save(self, directory: Path) -> str:
        """Write it to a new directory."""
        directory.mkdir()
        modules = sorted({name.rpartition(".")[2] for name in self.pairs})
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": modules, "bias": "none"}
        (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        tensors = {}
        for name, (a, b) in self.pairs.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.float().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.float().contiguous()
        save_file(tensors, directory / "adapter_model.safetensors")
        return str(directory)

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of ``model`` with the adapter's weights added to its own."""
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name, (a, b) in self.pairs.items():
                other.get_parameter(f"{name}.weight").add_((ALPHA / RANK * b.double() @ a.double()).float())
        return other


def _pair(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, inputs = weight.shape
    return torch.randn(RANK, inputs) / inputs**0.5, torch.randn(outputs, RANK) * 0.05
