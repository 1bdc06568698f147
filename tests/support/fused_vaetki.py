"""VAETKI whose local layers attend as they do on a GPU, wherever it runs: kernels interpreted on a CPU."""

from typing import Any

from vllm.model_executor.models.registry import ModelRegistry

from trillion_serve.plugins.vllm.backend import LatentBackend
from trillion_serve.plugins.vllm.fused_backend import FusedBackend
from trillion_serve.plugins.vllm.vaetki import VaetkiAttention, VaetkiForCausalLM


class FusedAttention(VaetkiAttention):
    """A GPU's choice for local layers; global ones keep the CPU's, for want of a stock one that runs there."""

    def backends(self, config: Any, window: int | None) -> dict[str, Any]:
        return {"attn_backend": LatentBackend if window is None else FusedBackend}


class FusedVaetki(VaetkiForCausalLM):
    """The model as such."""

    attention_class = FusedAttention


def register() -> str:
    """Make vLLM know it, and give its architecture's name."""
    ModelRegistry.register_model("FusedVaetki", FusedVaetki)
    return "FusedVaetki"
