"""Tri-70B on vLLM's Llama: tensor and pipeline parallel, LoRA, quantisation passed through.

Source: the model card of Tri-70B-preview-SFT; ``trillion_model.tri70b.modeling_tri70b`` is the plain form of the same
model. vLLM's Llama gives layers that the configuration calls local a window, and so a cache of that window; what is
ours is what a layer does with positions.
"""

import functools
from collections.abc import Iterable

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index

from trillion_model.architecture import Architecture
from trillion_model.tri70b.configuration_tri70b import TrillionConfig
from trillion_model.tri70b.modeling_tri70b import query_scale
from trillion_serve.plugins.vllm import adapters, cpu_seeds
from trillion_serve.plugins.vllm.capacity import reporting
from trillion_serve.plugins.vllm.weights import load_strictly


class TrillionAttention(LlamaAttention):
    """RoPE over a window, or no positions, everything in sight and scaled queries."""

    def __init__(self, config: TrillionConfig, prefix: str, **options: object) -> None:
        super().__init__(config=config, prefix=prefix, **options)
        self.config = config
        self.is_local = config.is_local(extract_layer_index(prefix))
        self.attn.attn_backend = reporting(self.attn.attn_backend)

    def _init_rotary_emb(self, config: TrillionConfig, quant_config: QuantizationConfig | None) -> None:
        self.rotary_emb = get_rope(
            self.head_dim,
            max_position=self.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (tokens, hidden) to the same; the cache is vLLM's to find."""
        q, k, v = self.qkv_proj(hidden_states)[0].split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        if self.is_local:
            q, k = self.rotary_emb(positions, q, k)
        else:
            q = (q * query_scale(self.config, positions)[:, None]).to(q.dtype)
        return self.o_proj(self.attn(q, k, v))[0]


class TrillionForCausalLM(LlamaForCausalLM):
    """Tri-70B for vLLM."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        layer = functools.partial(LlamaDecoderLayer, attn_layer_type=TrillionAttention)
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer)
        cpu_seeds.install()
        adapters.install(self, vllm_config, adapters.LLAMA)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a published checkpoint, see :func:`load_strictly`.

        Raises:
            CheckpointError: a tensor is unknown, missing, there twice or of the wrong shape.
        """
        return load_strictly(self, weights, Architecture.of(self.config).published_shapes())
