"""Decoder layers that more than one family has."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class PeriNormLayer(GradientCheckpointingLayer):
    """``x + post(sublayer(pre(x)))`` twice (VAETKI report, section 2.1; Trillion 7B report, section 3.4).

    Args:
        self_attn: maps hidden states, and the layer's other inputs, to hidden states and attention weights.
        mlp: maps hidden states to hidden states.
        norm: makes one of the four norms.
    """

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_mlp_layernorm = norm()
        self.post_mlp_layernorm = norm()

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        return hidden_states + self.post_mlp_layernorm(self.mlp(self.pre_mlp_layernorm(hidden_states)))
