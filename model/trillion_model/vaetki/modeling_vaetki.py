"""VAETKI in plain PyTorch, with the interface of a Hugging Face causal language model.

Source: VAETKI report, section 2.1. A layer is ``x + post(sublayer(pre(x)))`` twice (Peri-LN). Attention keeps one
latent and one rotary key a token, shared by all heads; keys and values are projected up from the latent when they
are needed, so a cache holds latents only.
"""

import functools
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import OutputRecorder

from trillion_model.cache import LatentCache
from trillion_model.configuration import LOCAL
from trillion_model.layers.attention import eager_attention
from trillion_model.layers.decoder import PeriNormLayer
from trillion_model.layers.feed_forward import SwiGLU
from trillion_model.layers.moe import Experts, SigmoidRouter, mean_load_balancing_loss
from trillion_model.layers.norm import ZeroCentredRMSNorm
from trillion_model.layers.rope import RopeParameters, rope_parameters, rotate_interleaved
from trillion_model.modeling import FamilyForCausalLM, FamilyModel
from trillion_model.vaetki.configuration_vaetki import VaetkiConfig


def layer_rope_parameters(config: VaetkiConfig, layer_type: str) -> RopeParameters:
    """RoPE of local or global layers: position interpolation and YaRN touch global layers only."""
    if layer_type == LOCAL:
        assert config.rope_theta is not None
        return rope_parameters(config.qk_rope_head_dim, config.rope_theta)
    assert config.rope_theta_global is not None
    return rope_parameters(
        config.qk_rope_head_dim,
        config.rope_theta_global,
        position_scale=config.global_position_scale,
        scaling=config.rope_scaling,
    )


def softmax_scale(config: VaetkiConfig, layer_type: str) -> float:
    """Factor on attention scores before the softmax."""
    return config.qk_head_dim**-0.5 * layer_rope_parameters(config, layer_type).score_scale


class VaetkiMoE(nn.Module):
    """Routed experts plus the shared expert."""

    def __init__(self, config: VaetkiConfig) -> None:
        super().__init__()
        self.gate = SigmoidRouter(
            config.hidden_size,
            config.n_routed_experts,
            config.num_experts_per_tok,
            config.norm_topk_prob,
            config.routed_scaling_factor,
        )
        self.experts = Experts(config.n_routed_experts, config.hidden_size, config.moe_intermediate_size)
        self.shared_experts = SwiGLU(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)
        _, weights, indices = self.gate(tokens)
        return self.experts(tokens, weights, indices).view_as(x) + self.shared_experts(x)


class VaetkiAttention(nn.Module):
    """Multi-head latent attention, over a window on local layers."""

    num_key_value_groups = 1
    is_causal = True

    def __init__(self, config: VaetkiConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.layer_types is not None
        self.config = config
        self.layer_idx = layer_idx
        self.scaling = softmax_scale(config, config.layer_types[layer_idx])
        self.sliding_window = config.sliding_window if config.is_local(layer_idx) else None
        heads, hidden = config.num_attention_heads, config.hidden_size
        self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
        self.q_a_layernorm = ZeroCentredRMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, config.latent_size, bias=False)
        self.kv_a_layernorm = ZeroCentredRMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: Any = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; returns the output (batch, seq, hidden) and, where recorded, the attention weights."""
        config = self.config
        batch, seq, _ = hidden_states.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        q = q.view(batch, seq, -1, config.qk_head_dim).transpose(1, 2)  # (batch, heads, seq, head_dim)
        q_nope, q_rope = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        q = torch.cat((q_nope, rotate_interleaved(q_rope, *position_embeddings)), dim=-1)

        latent, k_rope = self.kv_a_proj_with_mqa(hidden_states).split(
            [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1
        )
        latent = self.kv_a_layernorm(latent).unsqueeze(1)  # (batch, 1, seq, kv_lora_rank)
        k_rope = rotate_interleaved(k_rope.unsqueeze(1), *position_embeddings)  # (batch, 1, seq, rope_dim)
        if past_key_values is not None:
            latent, k_rope = past_key_values.update(latent, k_rope, self.layer_idx)
        k, v = self._expand(latent, k_rope)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention)
        out, weights = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(batch, seq, -1)), weights

    def _expand(self, latent: torch.Tensor, k_rope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Every head's keys and values, each (batch, heads, kv_seq, its head_dim), from the shared latents."""
        batch, _, kv_seq, _ = latent.shape
        sizes = [self.config.qk_nope_head_dim, self.config.v_head_dim]
        kv = self.kv_b_proj(latent.squeeze(1)).view(batch, kv_seq, -1, sum(sizes)).transpose(1, 2)
        k_nope, v = kv.split(sizes, dim=-1)
        return torch.cat((k_nope, k_rope.expand(-1, k_nope.shape[1], -1, -1)), dim=-1), v


class VaetkiDecoderLayer(PeriNormLayer):
    """One layer: latent attention, and experts or a dense feed-forward."""

    def __init__(self, config: VaetkiConfig, layer_idx: int) -> None:
        super().__init__(
            VaetkiAttention(config, layer_idx),
            VaetkiMoE(config) if config.is_moe(layer_idx) else SwiGLU(config.hidden_size, config.intermediate_size),
            functools.partial(ZeroCentredRMSNorm, config.hidden_size, config.rms_norm_eps),
        )


class VaetkiModel(FamilyModel):
    """Token ids to final hidden states.

    Args:
        config: the architecture.
    """

    config: VaetkiConfig
    layer_class = VaetkiDecoderLayer
    norm_class = ZeroCentredRMSNorm
    cache_class = LatentCache
    output_class = MoeModelOutputWithPast
    _supports_flash_attn = False  # a head's value is shorter than its key
    _no_split_modules: ClassVar[list[str]] = ["VaetkiDecoderLayer"]
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": VaetkiDecoderLayer,
        "attentions": VaetkiAttention,
        "router_logits": OutputRecorder(SigmoidRouter, index=0),
    }

    @staticmethod
    def rope(config: VaetkiConfig, kind: str) -> RopeParameters:
        return layer_rope_parameters(config, kind)


class VaetkiForCausalLM(FamilyForCausalLM):
    """VAETKI with its language-model head, whose logits are float32.

    Args:
        config: the architecture.
    """

    config: VaetkiConfig
    model_class = VaetkiModel
    _supports_flash_attn = False

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits, and with ``labels`` the loss.

        With ``output_router_logits`` the local load-balancing loss is returned as ``aux_loss`` and, times
        ``router_aux_loss_coef``, added to the loss. The global-batch loss needs more than one forward sees: build
        it from ``router_logits`` with :func:`trillion_model.layers.moe.mean_load_balancing_loss`.

        Args:
            output_router_logits: the configuration's when None.
            input_ids, labels, logits_to_keep, kwargs: as :meth:`FamilyForCausalLM.forward`.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.model(input_ids=input_ids, output_router_logits=output_router_logits, **kwargs)
        fields = self.predict(outputs, labels, logits_to_keep, **kwargs)
        aux_loss = None
        if output_router_logits and outputs.router_logits:
            aux_loss = self._balance_loss(outputs, kwargs.get("attention_mask"))
            if labels is not None:
                fields["loss"] = fields["loss"] + self.config.router_aux_loss_coef * aux_loss
        return MoeCausalLMOutputWithPast(aux_loss=aux_loss, router_logits=outputs.router_logits, **fields)

    def _balance_loss(self, outputs: MoeModelOutputWithPast, attention_mask: torch.Tensor | None) -> torch.Tensor:
        seq = outputs.last_hidden_state.shape[1]
        return mean_load_balancing_loss(
            outputs.router_logits,
            self.config.num_experts_per_tok,
            mask=None if attention_mask is None else attention_mask[:, -seq:].flatten().bool(),
        )
