"""Tri-70B in plain PyTorch, with the interface of a Hugging Face causal language model.

Source: the model card of Tri-70B-preview-SFT and the code published with it. A layer is ``x + sublayer(norm(x))``
twice. Local layers turn queries and keys by RoPE and see a window; global layers see every token, have no positions,
and sharpen their scores with the query's position instead.
"""

import functools
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from trillion_model.configuration import GLOBAL, LOCAL
from trillion_model.layers.attention import eager_attention
from trillion_model.layers.feed_forward import SwiGLU
from trillion_model.layers.rope import RopeParameters, RotaryEmbedding, rope_parameters, rotate_halves
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


class TrillionAttention(nn.Module):
    """Grouped-query attention: with RoPE over a window, or over everything with scaled queries."""

    is_causal = True

    def __init__(self, config: TrillionConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.is_local = config.is_local(layer_idx)
        self.sliding_window = config.sliding_window if self.is_local else None
        hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        key_value_heads = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, heads, bias=False)
        self.k_proj = nn.Linear(hidden, key_value_heads, bias=False)
        self.v_proj = nn.Linear(hidden, key_value_heads, bias=False)
        self.o_proj = nn.Linear(heads, hidden, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        query_scale: torch.Tensor,
        attention_mask: Any = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; returns the output (batch, seq, hidden) and, where recorded, the attention weights.

        Args:
            hidden_states: (batch, seq, hidden).
            position_embeddings: cosines and sines, each (batch, seq, head_dim / 2), for local layers.
            query_scale: (batch, seq), for global layers.
        """
        batch, seq, _ = hidden_states.shape

        def heads(projection: nn.Linear) -> torch.Tensor:  # (batch, heads, seq, head_dim)
            return projection(hidden_states).view(batch, seq, -1, self.head_dim).transpose(1, 2)

        q, k, v = heads(self.q_proj), heads(self.k_proj), heads(self.v_proj)
        if self.is_local:
            q, k = rotate_halves(q, *position_embeddings), rotate_halves(k, *position_embeddings)
        else:
            q = (q * query_scale[:, None, :, None]).to(q.dtype)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out, weights = attend(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(out.reshape(batch, seq, -1)), weights


class TrillionDecoderLayer(GradientCheckpointingLayer):
    """One pre-norm layer."""

    def __init__(self, config: TrillionConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = TrillionAttention(config, layer_idx)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        norm = functools.partial(nn.RMSNorm, config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class TrillionPreTrainedModel(PreTrainedModel):
    """What Transformers needs to know of Tri-70B: initial weights and what can be recorded."""

    config: TrillionConfig
    config_class = TrillionConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["TrillionDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": TrillionDecoderLayer,
        "attentions": TrillionAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryEmbedding):
            # No checkpoint holds this buffer, and ``from_pretrained`` fills it by the module that owns it only.
            init.copy_(module.inv_freq, local_rope_parameters(self.config).inv_freq)


class TrillionModel(TrillionPreTrainedModel):
    """Token ids to final hidden states.

    Args:
        config: the architecture.
    """

    def __init__(self, config: TrillionConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TrillionDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(local_rope_parameters(config))
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
    ) -> BaseModelOutputWithPast:
        """Run all layers.

        Without ``attention_mask``, ``position_ids`` that start again within a row separate packed documents.

        Args:
            input_ids: (batch, seq); or give ``inputs_embeds`` (batch, seq, hidden).
            attention_mask: (batch, past + seq), 0 on padding.
            position_ids: (batch, seq); counted from the mask, or from the cache, when absent.
            past_key_values: a cache made for this configuration, so that local layers keep a window only; made when
                absent and ``use_cache``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = self._count_positions(inputs_embeds, attention_mask, past_key_values)

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
        positions = {
            "position_embeddings": self.rotary_emb(position_ids),
            "query_scale": query_scale(self.config, position_ids),
        }

        # After the masks: with a cache given, they would take restarting positions for padding, not for packing.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states = inputs_embeds
        for kind, layer in zip(kinds, self.layers, strict=True):
            hidden_states = layer(
                hidden_states, **positions, attention_mask=masks[kind], past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    @staticmethod
    def _count_positions(
        inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: DynamicCache | None
    ) -> torch.Tensor:
        """Positions (batch or 1, seq). Padding has none: scaled queries, unlike RoPE, mind where counting begins."""
        seq = inputs_embeds.shape[1]
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -seq:]
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        return torch.arange(start, start + seq, device=inputs_embeds.device)[None]


class TrillionForCausalLM(TrillionPreTrainedModel, GenerationMixin):
    """Tri-70B with its language-model head.

    Args:
        config: the architecture.
    """

    def __init__(self, config: TrillionConfig) -> None:
        super().__init__(config)
        self.model = TrillionModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and with ``labels`` the loss.

        Args:
            input_ids: (batch, seq).
            labels: (batch, seq), -100 where there is nothing to predict; shifted inside.
            logits_to_keep: number of last positions, or their indices, to compute logits for; 0 is all.
            kwargs: as :meth:`TrillionModel.forward`.
        """
        outputs = self.model(input_ids=input_ids, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
