"""Gravity for SGLang: DeepSeek-V3's architecture, of the parts that VAETKI is made of too.

SGLang's own DeepSeek-V3 knows the architecture by its name alone, and needs kernels that a CPU does not have.
"""

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding, yarn_apply_mscale

from trillion_model.gravity.configuration_gravity import GravityMoEConfig
from trillion_model.layers.rope import RopeParameters
from trillion_serve.plugins.sglang.attention import LatentAttention
from trillion_serve.plugins.sglang.decoder import CausalLM, Rotations
from trillion_serve.plugins.sglang.feed_forward import MixtureOfExperts, SwiGLU


class GravityMoEDecoderLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: GravityMoEConfig, layer_idx: int, prefix: str) -> None:
        super().__init__()
        scale = yarn_apply_mscale(config.rope_parameters, config.qk_head_dim**-0.5)
        self.self_attn = LatentAttention(config, layer_idx, scale, RMSNorm, f"{prefix}.self_attn")
        self.mlp: nn.Module = (
            MixtureOfExperts(config, layer_idx, f"{prefix}.mlp", biased=True)
            if layer_idx >= config.first_k_dense_replace
            else SwiGLU(config.hidden_size, config.intermediate_size, f"{prefix}.mlp")
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, rotations: Rotations, positions: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        x = x + self.self_attn(self.input_layernorm(x), rotations[False], forward_batch)
        return x + self.mlp(self.post_attention_layernorm(x))


class GravityMoEForCausalLM(CausalLM):
    """Gravity for SGLang."""

    layer_class = GravityMoEDecoderLayer

    @staticmethod
    def rope(config: GravityMoEConfig) -> dict[bool, RopeParameters]:
        """RoPE of every layer, as Transformers computes it; all are global."""
        rotary = DeepseekV3RotaryEmbedding(config)
        return {False: RopeParameters(rotary.inv_freq.float(), rotary.attention_scaling)}


EntryClass = GravityMoEForCausalLM
