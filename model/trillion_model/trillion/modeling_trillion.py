"""Trillion-7B in plain PyTorch, with the interface of a Hugging Face causal language model.

Source: Trillion 7B report, section 3.4. A layer is ``x + post(sublayer(pre(x)))`` twice: hidden states are normalised
before and after attention and feed-forward.

Cross-lingual document attention (section 2.2) is a matter of how rows are packed: with positions that run on through a
row, its documents see each other; positions that start again separate them.

The report gives the module that predicts the second next token one transformer layer after the last, and shares nothing
more of it. Here, as in the multi-token prediction that it follows (DeepSeek-V3), the last hidden state and the next
token's embedding are normalised apart, joined and projected; embedding and head are the model's own.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from trillion_model.layers.attention import eager_attention
from trillion_model.layers.feed_forward import SwiGLU
from trillion_model.layers.rope import RopeParameters, RotaryEmbedding, rope_parameters, rotate_halves
from trillion_model.trillion.configuration_trillion import Trillion7BConfig

_IGNORED = -100
"""The label of a token that is not to be predicted."""


def rotation_parameters(config: Trillion7BConfig) -> RopeParameters:
    """RoPE of every layer."""
    assert config.head_dim is not None and config.rope_theta is not None
    return rope_parameters(config.head_dim, config.rope_theta)


class Trillion7BAttention(nn.Module):
    """Multi-head attention with RoPE."""

    is_causal = True

    def __init__(self, config: Trillion7BConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None and config.num_key_value_heads is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
        shared_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, width, bias=False)
        self.k_proj = nn.Linear(hidden, shared_width, bias=False)
        self.v_proj = nn.Linear(hidden, shared_width, bias=False)
        self.o_proj = nn.Linear(width, hidden, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: Any = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; returns the output (batch, seq, hidden) and, where recorded, the attention weights."""
        batch, seq, _ = hidden_states.shape
        q, k, v = (
            projection(hidden_states).view(batch, seq, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # (batch, heads, seq, head_dim) each
        q, k = rotate_halves(q, *position_embeddings), rotate_halves(k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out, weights = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(batch, seq, -1)), weights


class Trillion7BDecoderLayer(GradientCheckpointingLayer):
    """One layer: a norm before and after each sublayer."""

    def __init__(self, config: Trillion7BConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Trillion7BAttention(config, layer_idx)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        norm = functools.partial(nn.RMSNorm, config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_mlp_layernorm = norm()
        self.post_mlp_layernorm = norm()

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        return hidden_states + self.post_mlp_layernorm(self.mlp(self.pre_mlp_layernorm(hidden_states)))


class Trillion7BPreTrainedModel(PreTrainedModel):
    """What Transformers needs to know of Trillion-7B: initial weights and what can be recorded."""

    config: Trillion7BConfig
    config_class = Trillion7BConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Trillion7BDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": Trillion7BDecoderLayer,
        "attentions": Trillion7BAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryEmbedding):
            # No checkpoint holds this buffer, and ``from_pretrained`` fills it by the module that owns it only.
            init.copy_(module.inv_freq, rotation_parameters(self.config).inv_freq)


class Trillion7BModel(Trillion7BPreTrainedModel):
    """Token ids to final hidden states.

    Args:
        config: the architecture.
    """

    def __init__(self, config: Trillion7BConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Trillion7BDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(rotation_parameters(config))
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
            position_ids: (batch, seq).
            past_key_values: a cache; made when absent and ``use_cache``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if position_ids is None:
            start = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(start, start + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        # After the mask: with a cache given, it would take restarting positions for padding, not for packing.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states = inputs_embeds
        rotation = self.rotary_emb(position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=rotation,
                attention_mask=mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class Trillion7BMtp(nn.Module):
    """Hidden states for the second next token, from the last ones and the next token's embedding.

    Args:
        config: the architecture.
    """

    def __init__(self, config: Trillion7BConfig) -> None:
        super().__init__()
        self.config = config
        norm = functools.partial(nn.RMSNorm, config.hidden_size, config.rms_norm_eps)
        self.hidden_layernorm = norm()
        self.embedding_layernorm = norm()
        self.projection = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layer = Trillion7BDecoderLayer(config, layer_idx=0)
        self.norm = norm()

    def forward(
        self,
        hidden_states: torch.Tensor,
        next_embeddings: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: Any,
    ) -> torch.Tensor:
        """Map (batch, seq, hidden) states and embeddings, those of the token that follows each, to the same shape."""
        joined = torch.cat((self.hidden_layernorm(hidden_states), self.embedding_layernorm(next_embeddings)), dim=-1)
        return self.norm(
            self.layer(self.projection(joined), position_embeddings=position_embeddings, attention_mask=attention_mask)
        )


@dataclass
class Trillion7BOutput(CausalLMOutputWithPast):
    """A causal language model's output, and the loss on the second next token where it was asked for."""

    mtp_loss: torch.Tensor | None = None


class Trillion7BForCausalLM(Trillion7BPreTrainedModel, GenerationMixin):
    """Trillion-7B with its language-model head, whose logits are float32.

    Args:
        config: the architecture. With ``num_nextn_predict_layers`` the model has ``mtp``, else that is None.
    """

    def __init__(self, config: Trillion7BConfig) -> None:
        super().__init__(config)
        self.model = Trillion7BModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp = Trillion7BMtp(config) if config.num_nextn_predict_layers else None
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_mtp_loss: bool | None = None,
        **kwargs: Any,
    ) -> Trillion7BOutput:
        """Logits, and with ``labels`` the loss.

        With ``output_mtp_loss`` the loss on the second next token is returned as ``mtp_loss`` and, times
        ``mtp_loss_coef``, added to the loss. A trainer that calls the base model only gets it from :func:`mtp_loss`.

        Args:
            input_ids: (batch, seq).
            labels: (batch, seq), -100 where there is nothing to predict; shifted inside.
            logits_to_keep: number of last positions, or their indices, to compute logits for; 0 is all.
            output_mtp_loss: the configuration's when None.
            kwargs: as :meth:`Trillion7BModel.forward`.
        """
        outputs = self.model(input_ids=input_ids, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.project(outputs.last_hidden_state[:, kept])

        loss = second_loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
            if self.config.output_mtp_loss if output_mtp_loss is None else output_mtp_loss:
                assert input_ids is not None
                second_loss = mtp_loss(
                    self,
                    outputs.last_hidden_state,
                    input_ids,
                    labels,
                    attention_mask=kwargs.get("attention_mask"),
                    position_ids=kwargs.get("position_ids"),
                )
                loss = loss + self.config.mtp_loss_coef * second_loss
        return Trillion7BOutput(
            loss=loss,
            mtp_loss=second_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocab) in float32 of final hidden states (..., hidden)."""
        return F.linear(hidden_states.float(), self.lm_head.weight.float())


def mtp_loss(
    model: Trillion7BForCausalLM,
    hidden_states: torch.Tensor,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of the second next token (Trillion 7B report, section 3.4).

    Where ``position_ids`` start again, no token of one document is predicted from another; nor is any from padding.

    Args:
        model: with ``mtp``.
        hidden_states: its final ones for ``input_ids``, (batch, seq, hidden).
        input_ids, labels: (batch, seq), not shifted; -100 where there is nothing to predict.
        attention_mask, position_ids: (batch, seq), as they were given to the model.

    Returns:
        A scalar; 0 where nothing is left to predict.

    Raises:
        ValueError: the model has no ``mtp``.
    """
    if model.mtp is None:
        raise ValueError("the model predicts one token only; build it with num_nextn_predict_layers=1")
    batch, seq = input_ids.shape
    if position_ids is None:
        position_ids = torch.arange(seq, device=input_ids.device)[None]
    embeddings = model.model.embed_tokens(input_ids[:, 1:])
    mask = create_causal_mask(
        config=model.config,
        inputs_embeds=embeddings,
        attention_mask=None if attention_mask is None else attention_mask[:, :-1],
        past_key_values=None,
        position_ids=position_ids[:, :-1],
    )
    rotation = model.model.rotary_emb(position_ids[:, :-1])
    predicted = model.mtp(hidden_states[:, :-1], embeddings, rotation, mask)[:, :-1]  # (batch, seq - 2, hidden)
    within = (position_ids[:, 2:] == position_ids[:, :-2] + 2).expand(batch, -1)
    if attention_mask is not None:
        within = within & attention_mask[:, :-2].bool()
    targets = labels[:, 2:].masked_fill(~within, _IGNORED)
    summed = F.cross_entropy(
        model.project(predicted).flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum"
    )
    return summed / (targets != _IGNORED).sum().clamp(min=1)


def without_mtp(model: Trillion7BForCausalLM) -> Trillion7BForCausalLM:
    """The model as it is published and trained further, on the same parameters."""
    with torch.device("meta"):
        published = Trillion7BForCausalLM(model.config.published())
    weights = {name: tensor for name, tensor in model.state_dict().items() if name in published.state_dict()}
    published.load_state_dict(weights, assign=True)
    published.model.rotary_emb = model.model.rotary_emb
    return published.train(model.training)
