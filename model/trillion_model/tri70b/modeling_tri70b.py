"""Tri-70B in plain PyTorch, with the interface of a Hugging Face causal language model.

Source: the model card of Tri-70B-preview-SFT and the code published with it. A layer is ``x + sublayer(norm(x))``
twice. Local layers turn queries and keys by RoPE and see a window; global layers see every token, have no positions,
and sharpen their scores with the query's position instead.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from trillion_model.configuration import LOCAL
from trillion_model.layers.attention import GroupedQueryAttention
from trillion_model.layers.feed_forward import SwiGLU
from trillion_model.layers.rope import RopeParameters, rope_parameters
from trillion_model.modeling import FamilyForCausalLM, FamilyModel
from trillion_model.tri70b.configuration_tri70b import TrillionConfig


def local_rope_parameters(config: TrillionConfig) -> RopeParameters:
    """RoPE of local layers; global layers have none."""
    assert config.rope_theta is not None
    return rope_parameters(config.head_dim, config.rope_theta)


def query_scale(config: TrillionConfig, position_ids: torch.Tensor) -> torch.Tensor:
    """Factor on a global layer's queries, float32, of the shape of ``position_ids``.

    It grows with the logarithm of the position, so that attention over many keys stays as sharp as over few.
    """
    if not config.attn_temperature_tuning:
        return torch.ones_like(position_ids, dtype=torch.float32)
    return 1 + config.attn_scale * torch.log1p(torch.floor((position_ids.float() + 1) / config.floor_scale))


class TrillionDecoderLayer(GradientCheckpointingLayer):
    """One pre-norm layer."""

    def __init__(self, config: TrillionConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = GroupedQueryAttention(config, layer_idx)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class TrillionModel(FamilyModel):
    """Token ids to final hidden states.

    Args:
        config: the architecture.
    """

    config: TrillionConfig
    layer_class = TrillionDecoderLayer
    _no_split_modules: ClassVar[list[str]] = ["TrillionDecoderLayer"]
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": TrillionDecoderLayer,
        "attentions": GroupedQueryAttention,
    }

    @staticmethod
    def rope(config: TrillionConfig, kind: str) -> RopeParameters | None:
        return local_rope_parameters(config) if kind == LOCAL else None

    def layer_inputs(self, kind: str, position_ids: torch.Tensor) -> dict[str, Any]:
        if kind == LOCAL:
            return super().layer_inputs(kind, position_ids)
        return {"query_scale": query_scale(self.config, position_ids)}

    def count_positions(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: DynamicCache | None
    ) -> torch.Tensor:
        """As of every family, but padding has none: scaled queries, unlike RoPE, mind where counting begins."""
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        return super().count_positions(inputs_embeds, attention_mask, past_key_values)


class TrillionForCausalLM(FamilyForCausalLM):
    """Tri-70B with its language-model head.

    Args:
        config: the architecture.
    """

    config: TrillionConfig
    model_class = TrillionModel
    float32_head = False
