"""VAETKI for SGLang: every layer caches latents only, and local layers draw from a pool of their window's size.

Source: VAETKI report, section 2.1; ``trillion_model.vaetki.modeling_vaetki`` is the plain form of the same model.
"""

import torch
from sglang.srt.layers.layernorm import GemmaRMSNorm
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import nn

from trillion_model.configuration import GLOBAL, LOCAL
from trillion_model.layers.rope import RopeParameters
from trillion_model.vaetki.configuration_vaetki import VaetkiConfig
from trillion_model.vaetki.modeling_vaetki import layer_rope_parameters, softmax_scale
from trillion_serve.plugins.sglang.attention import LatentAttention
from trillion_serve.plugins.sglang.decoder import CausalLM, Rotations
from trillion_serve.plugins.sglang.feed_forward import MixtureOfExperts, SwiGLU


class VaetkiDecoderLayer(nn.Module):
    """One Peri-LN layer."""

    def __init__(self, config: VaetkiConfig, layer_idx: int, prefix: str) -> None:
        super().__init__()
        self.is_local = config.is_local(layer_idx)
        scale = softmax_scale(config, LOCAL if self.is_local else GLOBAL)
        self.self_attn = LatentAttention(config, layer_idx, scale, GemmaRMSNorm, f"{prefix}.self_attn")
        self.mlp: nn.Module = (
            MixtureOfExperts(config, layer_idx, f"{prefix}.mlp")
            if config.is_moe(layer_idx)
            else SwiGLU(config.hidden_size, config.intermediate_size, f"{prefix}.mlp")
        )
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_mlp_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_mlp_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, rotations: Rotations, positions: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        attended = self.self_attn(self.input_layernorm(x), rotations[self.is_local], forward_batch)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_mlp_layernorm(self.mlp(self.pre_mlp_layernorm(x)))


class VaetkiForCausalLM(CausalLM):
    """VAETKI for SGLang."""

    layer_class = VaetkiDecoderLayer
    norm_class = GemmaRMSNorm
    float32_logits = True

    @staticmethod
    def rope(config: VaetkiConfig) -> dict[bool, RopeParameters]:
        """RoPE of local layers (True) and global ones."""
        return {kind == LOCAL: layer_rope_parameters(config, kind) for kind in (LOCAL, GLOBAL)}


EntryClass = VaetkiForCausalLM
