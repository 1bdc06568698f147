"""What the modelling code of all families shares: a decoder between an embedding and a language-model head.

A family derives two classes, which Transformers finds by the names that ``architectures`` and ``auto_map`` state. They
say in class attributes what its layers, norms and caches are, and override what only it can know: what layers are told
of positions in :meth:`FamilyModel.layer_inputs`, further losses in ``forward``.

Transformers reads from each of the two, and not from one in the other's place, which configuration it has (the
annotation ``config``) and whether FlashAttention may run it, so a family repeats these.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from trillion_model.configuration import GLOBAL, LOCAL, FamilyConfig
from trillion_model.layers.initial import OwnInitial
from trillion_model.layers.rope import RopeParameters, RotaryEmbedding

_MASKS = {LOCAL: create_sliding_window_causal_mask, GLOBAL: create_causal_mask}


class FamilyPreTrainedModel(PreTrainedModel):
    """What Transformers needs to know of every family."""

    config: FamilyConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, OwnInitial):
            module.initialise(self.config.initializer_range)


class FamilyModel(FamilyPreTrainedModel):
    """Token ids to final hidden states.

    Class attributes that a family sets, beside those of Transformers that name its layers (``_no_split_modules``,
    ``_can_record_outputs``):
        layer_class: made of the configuration and the layer's index.
        norm_class: of the final hidden states; made of their size and epsilon.
        cache_class: made of the configuration where ``use_cache`` asks for a cache and none is given.
        output_class: has a field for everything that is recorded.

    Args:
        config: the architecture.
    """

    layer_class: ClassVar[type[nn.Module]]
    norm_class: ClassVar[type[nn.Module]] = nn.RMSNorm
    cache_class: ClassVar[type[DynamicCache]] = DynamicCache
    output_class: ClassVar[type[Any]] = BaseModelOutputWithPast

    def __init__(self, config: FamilyConfig) -> None:
        super().__init__(config)
        self.kinds = [LOCAL if config.is_local(layer) else GLOBAL for layer in range(config.num_hidden_layers)]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.layer_class(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = self.norm_class(config.hidden_size, config.rms_norm_eps)
        rope = {kind: self.rope(config, kind) for kind in sorted(set(self.kinds))}
        self.rotary_emb = nn.ModuleDict({kind: RotaryEmbedding(found) for kind, found in rope.items() if found})
        self.gradient_checkpointing = False
        self.post_init()

    @staticmethod
    def rope(config: Any, kind: str) -> RopeParameters | None:
        """RoPE of local or of global layers; None where that kind of layer has none."""
        raise NotImplementedError

    def layer_inputs(self, kind: str, position_ids: torch.Tensor) -> dict[str, Any]:
        """What a layer of ``kind`` is told of positions (batch, seq), as arguments of its forward."""
        return {"position_embeddings": self.rotary_emb[kind](position_ids)}

    def count_positions(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: DynamicCache | None
    ) -> torch.Tensor:
        """Positions (batch or 1, seq) where none are given: they go on from the cache."""
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        return torch.arange(start, start + inputs_embeds.shape[1], device=inputs_embeds.device)[None]

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
    ) -> Any:
        """Run all layers.

        Without ``attention_mask``, ``position_ids`` that start again within a row separate packed documents.

        Args:
            input_ids: (batch, seq); or give ``inputs_embeds`` (batch, seq, hidden).
            attention_mask: (batch, past + seq), 0 on padding.
            position_ids: (batch, seq).
            past_key_values: a cache made for this configuration, so that local layers keep a window only; made when
                absent and ``use_cache``.

        Returns:
            ``output_class``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = self.count_positions(inputs_embeds, attention_mask, past_key_values)
        mask_inputs = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        inputs = {
            kind: self.layer_inputs(kind, position_ids) | {"attention_mask": _MASKS[kind](**mask_inputs)}
            for kind in set(self.kinds)
        }
        # After the masks: with a cache given, they would take restarting positions for padding, not for packing.
        if use_cache and past_key_values is None:
            past_key_values = self.cache_class(config=self.config)

        hidden_states = inputs_embeds
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            hidden_states = layer(hidden_states, **inputs[kind], past_key_values=past_key_values, **kwargs)
        return self.output_class(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class FamilyForCausalLM(FamilyPreTrainedModel, GenerationMixin):
    """A family's model with its language-model head.

    Class attributes that a family sets:
        model_class: the model below the head.
        float32_head: whether logits are computed in float32, or in the head's dtype.

    Args:
        config: the architecture.
    """

    model_class: ClassVar[type[FamilyModel]]
    float32_head: ClassVar[bool] = True

    def __init__(self, config: FamilyConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
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
            kwargs: as :meth:`FamilyModel.forward`.
        """
        outputs = self.model(input_ids=input_ids, **kwargs)
        return CausalLMOutputWithPast(**self.predict(outputs, labels, logits_to_keep, **kwargs))

    def predict(
        self, outputs: Any, labels: torch.Tensor | None, logits_to_keep: int | torch.Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """The fields of the output that every family has, from the model's ``outputs``; arguments as for forward."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.project(outputs.last_hidden_state[:, kept])
        return {
            "loss": None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs),
            "logits": logits,
            "past_key_values": outputs.past_key_values,
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
        }

    def project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocab) of final hidden states (..., hidden)."""
        if not self.float32_head:
            return self.lm_head(hidden_states)
        return F.linear(hidden_states.float(), self.lm_head.weight.float())

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> Any:
        prepared = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        made = type(model_kwargs.get("past_key_values"))
        if made is DynamicCache and made is not self.model_class.cache_class:
            model_kwargs["past_key_values"] = self.model_class.cache_class(config=self.config)
        return prepared
