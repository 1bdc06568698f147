"""What a LoRA adapter may change in a model with latent attention, and the refusal of everything else.

Decode multiplies with parts of ``kv_b_proj`` that were taken apart when the model was loaded, so that an adapter on
it would work in prefill alone; of the experts' kernels only some know adapters. vLLM would take such weights and leave
them out without a word.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vllm.config import get_current_vllm_config, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.model_executor.models.utils import WeightsMapper

from trillion_model.errors import ConfigError

_MERGED = {"gate_up_proj": ("gate_proj", "up_proj")}
_LAYERS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_up_proj", "down_proj")
_NAMES = [name for layer in _LAYERS for name in _MERGED.get(layer, (layer,))]


def restrict(config: LoRAConfig) -> None:
    """Let vLLM prepare the layers that an adapter may change, or those of them that were asked for.

    Raises:
        ConfigError: another layer was asked for.
    """
    for name in config.target_modules or ():
        if name not in _LAYERS:
            raise ConfigError("lora_target_modules", name, f"one of {', '.join(_LAYERS)}")
    config.target_modules = list(config.target_modules or _LAYERS)


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

    def _map_name(self, key: str) -> str:
        """``key`` itself.

        Raises:
            ConfigError: it belongs to a layer that an adapter may not change.
        """
        module = key.partition(".lora_")[0].split(".")
        if "experts" in module or module[-1] not in _NAMES:
            raise ConfigError("an adapter's layer", ".".join(module), f"{', '.join(_NAMES)}, outside routed experts")
        return key
