"""VAETKI in plain PyTorch, with the interface of a Hugging Face causal language model.

Source: VAETKI report, section 2.1. A layer is ``x + post(sublayer(pre(x)))`` twice (Peri-LN). Attention keeps one
latent and one rotary key a token, shared by all heads; keys and values are projected up from the latent when they
are needed, so a cache holds latents only.
"""

import functools
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from trillion_model.cache import LatentCache
from trillion_model.configuration import GLOBAL, LOCAL
from trillion_model.layers.attention import eager_attention
from trillion_model.layers.feed_forward import SwiGLU
from trillion_model.layers.moe import Experts, SigmoidRouter, mean_load_balancing_loss
from trillion_model.layers.norm import ZeroCentredRMSNorm
from trillion_model.layers.rope import RopeParameters, RotaryEmbedding, rope_parameters, rotate_interleaved
from trillion_model.vaetki.configuration_vaetki import VaetkiConfig


def layer_rope_parameters(config: VaetkiConfig, layer_type: str) -> RopeParameters:
    """RoPE of local or global layers: position interpolation and YaRN touch global layers only."""
    if layer_type == LOCAL:
        assert config.rope_theta is not None
        return rope_parameters(config.qk_rope_head_dim, config.rope_theta)
    return rope_parameters(
        config.qk_rope_head_dim,
        config.rope_theta_global,
        position_scale=config.global_position_scale,
        scaling=config.rope_scaling,
    )


def softmax_scale(config: VaetkiConfig, layer_type: str) -> float:
    """Factor on attention scores before the softmax."""
    return config.qk_head_dim**-0.5 * layer_rope_parameters(config, layer_type).score_scale


class VaetkiRotaryEmbedding(RotaryEmbedding):
    """RoPE of local or global layers, which remembers which of the two it is."""

    def __init__(self, config: VaetkiConfig, layer_type: str) -> None:
        super().__init__(layer_rope_parameters(config, layer_type))
        self.layer_type = layer_type


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


class VaetkiDecoderLayer(GradientCheckpointingLayer):
    """One Peri-LN layer."""

    def __init__(self, config: VaetkiConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = VaetkiAttention(config, layer_idx)
        self.mlp: nn.Module = (
            VaetkiMoE(config) if config.is_moe(layer_idx) else SwiGLU(config.hidden_size, config.intermediate_size)
        )
        norm = functools.partial(ZeroCentredRMSNorm, config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_mlp_layernorm = norm()
        self.post_mlp_layernorm = norm()

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        return hidden_states + self.post_mlp_layernorm(self.mlp(self.pre_mlp_layernorm(hidden_states)))


class VaetkiPreTrainedModel(PreTrainedModel):
    """What Transformers needs to know of VAETKI: initial weights and what can be recorded."""

    config: VaetkiConfig
    config_class = VaetkiConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["VaetkiDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": VaetkiDecoderLayer,
        "attentions": VaetkiAttention,
        "router_logits": OutputRecorder(SigmoidRouter, index=0),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, ZeroCentredRMSNorm):
            init.zeros_(module.weight)
        elif isinstance(module, SigmoidRouter):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, Experts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
        elif isinstance(module, VaetkiRotaryEmbedding):
            # No checkpoint holds this buffer, and ``from_pretrained`` fills it by the module that owns it only.
            init.copy_(module.inv_freq, layer_rope_parameters(self.config, module.layer_type).inv_freq)


class VaetkiModel(VaetkiPreTrainedModel):
    """Token ids to final hidden states.

    Args:
        config: the architecture.
    """

    def __init__(self, config: VaetkiConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(VaetkiDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = ZeroCentredRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = nn.ModuleDict({kind: VaetkiRotaryEmbedding(config, kind) for kind in (LOCAL, GLOBAL)})
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Run all layers.

        Without ``attention_mask``, ``position_ids`` that start again within a row separate packed documents.

        Args:
            input_ids: (batch, seq); or give ``inputs_embeds`` (batch, seq, hidden).
            attention_mask: (batch, past + seq), 0 on padding.
            position_ids: (batch, seq).
            past_key_values: a :class:`LatentCache`; made when absent and ``use_cache``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if position_ids is None:
            start = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(start, start + inputs_embeds.shape[1], device=inputs_embeds.device)[None]

        mask_inputs = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        makers = {LOCAL: create_sliding_window_causal_mask, GLOBAL: create_causal_mask}
        kinds = self.config.layer_types or []
        masks = {kind: make(**mask_inputs) for kind, make in makers.items() if kind in kinds}
        rotations = {kind: self.rotary_emb[kind](position_ids) for kind in masks}

        # After the masks: with a cache given, they would take restarting positions for padding, not for packing.
        if use_cache and past_key_values is None:
            past_key_values = LatentCache(self.config)

        hidden_states = inputs_embeds
        for kind, layer in zip(kinds, self.layers, strict=True):
            hidden_states = layer(
                hidden_states,
                position_embeddings=rotations[kind],
                attention_mask=masks[kind],
                past_key_values=past_key_values,
                **kwargs,
            )
        return MoeModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class VaetkiForCausalLM(VaetkiPreTrainedModel, GenerationMixin):
    """VAETKI with its language-model head, whose logits are float32.

    Args:
        config: the architecture.
    """

    def __init__(self, config: VaetkiConfig) -> None:
        super().__init__(config)
        self.model = VaetkiModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

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
            input_ids: (batch, seq).
            labels: (batch, seq), -100 where there is nothing to predict; shifted inside.
            logits_to_keep: number of last positions, or their indices, to compute logits for; 0 is all.
            kwargs: as :meth:`VaetkiModel.forward`.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.model(input_ids=input_ids, output_router_logits=output_router_logits, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state[:, kept]
        logits = F.linear(hidden_states.float(), self.lm_head.weight.float())

        loss = aux_loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        if output_router_logits and outputs.router_logits:
            mask = kwargs.get("attention_mask")
            aux_loss = mean_load_balancing_loss(
                outputs.router_logits,
                self.config.num_experts_per_tok,
                mask=None if mask is None else mask[:, -logits.shape[1] :].flatten().bool(),
            )
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> Any:
        prepared = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if type(model_kwargs.get("past_key_values")) is DynamicCache:
            model_kwargs["past_key_values"] = LatentCache(self.config)
        return prepared
