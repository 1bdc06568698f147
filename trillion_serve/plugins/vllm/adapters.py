"""What a LoRA adapter may change in our models, and the refusal of everything else.

Latent attention decodes with parts of ``kv_b_proj`` that were taken apart when the model was loaded, so that an adapter
on it would work in prefill alone; of the experts' kernels only some know adapters. vLLM would take such weights and
leave them out without a word. An adapted head ends vLLM's engine on a CPU once log-probabilities of a prompt are asked
for.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn
from vllm.config import VllmConfig, get_current_vllm_config, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.model_executor.models.utils import WeightsMapper

from trillion_model.errors import ConfigError
from trillion_serve.plugins.vllm import cpu_adapters

LLAMA = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The layers, as vLLM names them, of models on its Llama."""

_MERGED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def install(model: nn.Module, config: VllmConfig, layers: Sequence[str]) -> None:
    """Let adapters change ``layers`` of ``model`` and nothing else, if there are to be any; see :func:`restrict`.

    Raises:
        ConfigError: another layer was asked for.
    """
    if config.lora_config is not None:
        cpu_adapters.install(config)
        model.hf_to_vllm_mapper = restrict(config.lora_config, layers)


def restrict(config: LoRAConfig, layers: Sequence[str]) -> "AdapterNames":
    """Let vLLM prepare the layers that an adapter may change, or those of them that were asked for.

    Args:
        config: vLLM's, which this changes.
        layers: by their names in vLLM's model.

    Returns:
        What vLLM is to give a model as its mapper of names.

    Raises:
        ConfigError: another layer was asked for.
    """
    for name in config.target_modules or ():
        if name not in layers:
            raise ConfigError("lora_target_modules", name, f"one of {', '.join(layers)}")
    config.target_modules = list(config.target_modules or layers)
    return AdapterNames(allowed=[name for layer in layers for name in _MERGED.get(layer, (layer,))])


@contextmanager
def left_out() -> Iterator[None]:
    """Build layers as if there were no adapters: with them, vLLM takes experts' kernels that a CPU lacks."""
    config = copy.copy(get_current_vllm_config())
    config.lora_config = None
    with set_current_vllm_config(config):
        yield


@dataclass
class AdapterNames(WeightsMapper):
    """The names of an adapter's weights, which stay as they are; vLLM asks a model's mapper for each."""

    allowed: list[str] = field(default_factory=list)

    def _map_name(self, key: str) -> str:
        """``key`` itself.

        Raises:
            ConfigError: it belongs to a layer that an adapter may not change.
        """
        module = key.partition(".lora_")[0].split(".")
        if "experts" in module or module[-1] not in self.allowed:
            expected = f"{', '.join(self.allowed)}, outside routed experts"
            raise ConfigError("an adapter's layer", ".".join(module), expected)
        return key
