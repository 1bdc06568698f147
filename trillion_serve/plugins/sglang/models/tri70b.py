"""Tri-70B for SGLang: local layers draw from a pool of their window's size.

Source: the model card of Tri-70B-preview-SFT; ``trillion_model.tri70b.modeling_tri70b`` is the plain form of the same
model. What is ours is what a layer does with positions.
"""

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import nn

from trillion_model.layers.rope import RopeParameters
from trillion_model.tri70b.configuration_tri70b import TrillionConfig
from trillion_model.tri70b.modeling_tri70b import local_rope_parameters, query_scale
from trillion_serve.plugins.sglang.attention import GroupedAttention, Rotation
from trillion_serve.plugins.sglang.decoder import CausalLM, Rotations
from trillion_serve.plugins.sglang.feed_forward import SwiGLU


class TrillionAttention(GroupedAttention):
    """RoPE over a window, or no positions, everything in sight and scaled queries."""

    def __init__(self, config: TrillionConfig, layer_idx: int, prefix: str) -> None:
        super().__init__(config, layer_idx, prefix)
        self.config = config
        self.is_local = config.is_local(layer_idx)

    def position(
        self, q: torch.Tensor, k: torch.Tensor, rotation: Rotation, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give queries and keys (tokens, heads, head_dim) their ``positions`` (tokens,)."""
        if self.is_local:
            return super().position(q, k, rotation, positions)
        return (q * query_scale(self.config, positions)[:, None, None]).to(q.dtype), k


class TrillionDecoderLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: TrillionConfig, layer_idx: int, prefix: str) -> None:
        super().__init__()
        self.self_attn = TrillionAttention(config, layer_idx, f"{prefix}.self_attn")
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, rotations: Rotations, positions: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        x = x + self.self_attn(self.input_layernorm(x), rotations[True], positions, forward_batch)
        return x + self.mlp(self.post_attention_layernorm(x))


class TrillionForCausalLM(CausalLM):
    """Tri-70B for SGLang."""

    layer_class = TrillionDecoderLayer

    @staticmethod
    def rope(config: TrillionConfig) -> dict[bool, RopeParameters]:
        """RoPE of local layers; global ones have none."""
        return {True: local_rope_parameters(config)}


EntryClass = TrillionForCausalLM
