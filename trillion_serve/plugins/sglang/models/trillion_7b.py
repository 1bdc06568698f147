"""Trillion-7B for SGLang.

Source: Trillion 7B report, section 3.4; ``trillion_model.trillion.modeling_trillion`` is the plain form of the same
model. The module that predicts the second next token belongs to training and is not served.
"""

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import nn

from trillion_model.layers.rope import RopeParameters
from trillion_model.trillion.configuration_trillion import Trillion7BConfig
from trillion_model.trillion.modeling_trillion import rotation_parameters
from trillion_serve.plugins.sglang.attention import GroupedAttention
from trillion_serve.plugins.sglang.decoder import CausalLM, Rotations
from trillion_serve.plugins.sglang.feed_forward import SwiGLU


class Trillion7BDecoderLayer(nn.Module):
    """One layer: a norm before and after each sublayer."""

    def __init__(self, config: Trillion7BConfig, layer_idx: int, prefix: str) -> None:
        super().__init__()
        self.self_attn = GroupedAttention(config, layer_idx, f"{prefix}.self_attn")
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_mlp_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_mlp_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, rotations: Rotations, positions: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        attended = self.self_attn(self.input_layernorm(x), rotations[False], positions, forward_batch)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_mlp_layernorm(self.mlp(self.pre_mlp_layernorm(x)))


class Trillion7BForCausalLM(CausalLM):
    """Trillion-7B for SGLang."""

    layer_class = Trillion7BDecoderLayer
    float32_logits = True

    @staticmethod
    def rope(config: Trillion7BConfig) -> dict[bool, RopeParameters]:
        """RoPE of every layer; all are global."""
        return {False: rotation_parameters(config)}


EntryClass = Trillion7BForCausalLM
