"""Gravity on vLLM's own DeepSeek-V3, whose latent attention and experts serve it as they are.

What is ours is strict loading, and RoPE on a CPU: vLLM 0.32's kernel there turns only the first head of a query that
comes a head at a time, as latent attention's does. Published files hold experts one by one; files in which they are
stacked, as modules hold them, are in use too and are read as well.

On a CPU vLLM turns chunked prefill and prefix caching off for latent attention, sets blocks of 16, and knows a latent
of 512 with a rotary key of 64 only.
"""

from collections.abc import Iterable, Iterator

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.models.deepseek_v2 import DeepseekV3ForCausalLM
from vllm.platforms import current_platform

from trillion_model.architecture import Architecture
from trillion_model.gravity.configuration_gravity import GravityMoEConfig
from trillion_model.gravity.layout import LAYOUT
from trillion_serve.plugins.vllm import adapters, cpu_seeds, expert_parallel
from trillion_serve.plugins.vllm.quantized_experts import experts_config
from trillion_serve.plugins.vllm.weights import load_strictly


class GravityMoEForCausalLM(DeepseekV3ForCausalLM):
    """Gravity for vLLM."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        expert_parallel.check(vllm_config)
        # Before vLLM writes a name of its own for YaRN into the configuration, which ours would refuse.
        published = Architecture.of(vllm_config.model_config.hf_config).published_shapes()
        vllm_config.quant_config = experts_config(vllm_config.quant_config)
        with adapters.left_out():
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        cpu_seeds.install()
        adapters.install(self, vllm_config, _adaptable(self.config))
        self.published = published
        if current_platform.is_cpu():
            for module in self.modules():
                if isinstance(module, RotaryEmbeddingBase):
                    module._forward_method = module.forward_native

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint, see :func:`load_strictly`.

        Raises:
            CheckpointError: a tensor is unknown, missing, there twice or of the wrong shape.
        """
        return load_strictly(self, _one_by_one(weights), self.published)


def _adaptable(config: GravityMoEConfig) -> tuple[str, ...]:
    """Layers that an adapter may change. Where queries have factors, vLLM joins their first one with the latent's
    projection to a layer that its adapters do not know."""
    latent = ("q_proj", "kv_a_proj_with_mqa") if config.q_lora_rank is None else ("q_b_proj",)
    return (*latent, "o_proj", "gate_up_proj", "down_proj")


def _one_by_one(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """``weights`` with stacked experts, the only tensors of three dimensions, taken apart."""
    for name, tensor in weights:
        yield from LAYOUT.to_published(name, tensor).items() if tensor.ndim == 3 else ((name, tensor),)
