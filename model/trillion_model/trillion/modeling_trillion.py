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
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from trillion_model.configuration import GLOBAL
from trillion_model.layers.attention import GroupedQueryAttention
from trillion_model.layers.decoder import PeriNormLayer
from trillion_model.layers.feed_forward import SwiGLU
from trillion_model.layers.rope import RopeParameters, rope_parameters
from trillion_model.modeling import FamilyForCausalLM, FamilyModel
from trillion_model.trillion.configuration_trillion import Trillion7BConfig

_IGNORED = -100
"""The label of a token that is not to be predicted."""


def rotation_parameters(config: Trillion7BConfig) -> RopeParameters:
    """RoPE of every layer."""
    assert config.head_dim is not None and config.rope_theta is not None
    return rope_parameters(config.head_dim, config.rope_theta)


class Trillion7BDecoderLayer(PeriNormLayer):
    """One layer: attention with RoPE, and a dense feed-forward."""

    def __init__(self, config: Trillion7BConfig, layer_idx: int) -> None:
        super().__init__(
            GroupedQueryAttention(config, layer_idx),
            SwiGLU(config.hidden_size, config.intermediate_size),
            functools.partial(nn.RMSNorm, config.hidden_size, config.rms_norm_eps),
        )


class Trillion7BModel(FamilyModel):
    """Token ids to final hidden states.

    Args:
        config: the architecture.
    """

    config: Trillion7BConfig
    layer_class = Trillion7BDecoderLayer
    _no_split_modules: ClassVar[list[str]] = ["Trillion7BDecoderLayer"]
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": Trillion7BDecoderLayer,
        "attentions": GroupedQueryAttention,
    }

    @staticmethod
    def rope(config: Trillion7BConfig, kind: str) -> RopeParameters:
        return rotation_parameters(config)


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

    def forward(self, hidden_states: torch.Tensor, next_embeddings: torch.Tensor, **layer_inputs: Any) -> torch.Tensor:
        """Map (batch, seq, hidden) states and embeddings, those of the token that follows each, to the same shape."""
        joined = torch.cat((self.hidden_layernorm(hidden_states), self.embedding_layernorm(next_embeddings)), dim=-1)
        return self.norm(self.layer(self.projection(joined), **layer_inputs))


@dataclass
class Trillion7BOutput(CausalLMOutputWithPast):
    """A causal language model's output, and the loss on the second next token where it was asked for."""

    mtp_loss: torch.Tensor | None = None


class Trillion7BForCausalLM(FamilyForCausalLM):
    """Trillion-7B with its language-model head, whose logits are float32.

    Args:
        config: the architecture. With ``num_nextn_predict_layers`` the model has ``mtp``, else that is None.
    """

    config: Trillion7BConfig
    model_class = Trillion7BModel

    def __init__(self, config: Trillion7BConfig) -> None:
        super().__init__(config)
        self.mtp = Trillion7BMtp(config) if config.num_nextn_predict_layers else None
        self.post_init()  # Transformers initialises what is there when it is called

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
            output_mtp_loss: the configuration's when None.
            input_ids, labels, logits_to_keep, kwargs: as :meth:`FamilyForCausalLM.forward`.
        """
        outputs = self.model(input_ids=input_ids, **kwargs)
        fields = self.predict(outputs, labels, logits_to_keep, **kwargs)
        second_loss = None
        if labels is not None and (self.config.output_mtp_loss if output_mtp_loss is None else output_mtp_loss):
            assert input_ids is not None
            second_loss = mtp_loss(
                self,
                outputs.last_hidden_state,
                input_ids,
                labels,
                attention_mask=kwargs.get("attention_mask"),
                position_ids=kwargs.get("position_ids"),
            )
            fields["loss"] = fields["loss"] + self.config.mtp_loss_coef * second_loss
        return Trillion7BOutput(mtp_loss=second_loss, **fields)


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
    inputs = model.model.layer_inputs(GLOBAL, position_ids[:, :-1]) | {"attention_mask": mask}
    predicted = model.mtp(hidden_states[:, :-1], embeddings, **inputs)[:, :-1]  # (batch, seq - 2, hidden)
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
