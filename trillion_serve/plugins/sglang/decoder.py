"""What all our models are for SGLang: embeddings, layers, a norm and a head, tensor parallel.

A family gives its layer and its RoPE. Pipeline parallelism is refused before.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import nn

from trillion_model.architecture import Architecture
from trillion_model.layers.rope import RopeParameters, RotaryEmbedding
from trillion_serve.plugins.sglang.attention import Rotation
from trillion_serve.plugins.sglang.model_config import has_windows, stored_quantization
from trillion_serve.plugins.sglang.quantized import dequantized, scheme_of
from trillion_serve.plugins.sglang.weights import load_strictly

logger = logging.getLogger(__name__)

Rotations = dict[bool, Rotation]
"""Cosines and sines of the step's positions, for local layers (True) and global ones."""


class Decoder(nn.Module):
    """Token ids to final hidden states."""

    def __init__(
        self,
        config: Any,
        layer: Callable[..., nn.Module],
        norm: Callable[..., nn.Module],
        rope: dict[bool, RopeParameters],
    ) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, prefix="model.embed_tokens")
        self.layers = nn.ModuleList(layer(config, i, f"model.layers.{i}") for i in range(config.num_hidden_layers))
        self.norm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.kinds = list(rope)
        self.rotary_emb = nn.ModuleList(RotaryEmbedding(parameters) for parameters in rope.values())

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run all layers over (tokens,) ids at (tokens,) positions."""
        hidden_states = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
        rotations = {kind: rotary(positions) for kind, rotary in zip(self.kinds, self.rotary_emb, strict=True)}
        for layer in self.layers:
            hidden_states = layer(hidden_states, rotations, positions, forward_batch)
        return self.norm(hidden_states)


class CausalLM(nn.Module):
    """A decoder with its language-model head.

    Attributes:
        layer_class: called with the configuration, a layer's number and its prefix.
        norm_class: a norm of SGLang's.
        float32_logits: whether the head is computed in float32 whatever the model's dtype.
    """

    layer_class: ClassVar[type[nn.Module]]
    norm_class: ClassVar[type[nn.Module]] = RMSNorm
    float32_logits: ClassVar[bool] = False

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, self.layer_class, self.norm_class, self.rope(config))
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix="lm_head")
        self.logits_processor = LogitsProcessor(config)
        if self.float32_logits:
            self.logits_processor.use_fp32_lm_head = True

    @staticmethod
    def rope(config: Any) -> dict[bool, RopeParameters]:
        """RoPE of local layers (True) and global ones, of those kinds that have any."""
        raise NotImplementedError

    def get_attention_sliding_window_size(self) -> int | None:
        """The window as SGLang counts it, without the query's own token; None for a family without windows."""
        return self.config.sliding_window - 1 if has_windows(self.config) else None

    def get_input_embeddings(self) -> nn.Module:
        """The embedding layer."""
        return self.model.embed_tokens

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
    ) -> LogitsProcessorOutput:
        """Logits of the tokens that the batch asks for."""
        hidden_states = self.model(input_ids, positions, forward_batch, input_embeds)
        return self.logits_processor(input_ids, hidden_states, self.lm_head, forward_batch)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a published checkpoint, see :func:`load_strictly`; a quantised one is dequantised on the way.

        Raises:
            CheckpointError: a tensor is unknown, missing, there twice or of the wrong shape.
        """
        if (stated := stored_quantization(self.config)) is not None:
            logger.warning(
                "These weights are quantised: they are dequantised as they load, and take the memory of plain ones."
            )
            weights = dequantized(weights, scheme_of(stated))
        return load_strictly(self, weights, Architecture.of(self.config).published_shapes())
