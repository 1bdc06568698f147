"""Attention on SGLang's parallel layers and its radix cache: over latents, and over grouped keys and values."""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.linear import ColumnParallelLinear, QKVParallelLinear, ReplicatedLinear, RowParallelLinear
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import get_parallel
from torch import nn

from trillion_model.layers.rope import rotate_halves, rotate_interleaved

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the step's positions, each (tokens, rope_dim / 2)."""

NO_WINDOW = -1


def window_of(config: Any, layer_idx: int) -> int:
    """A layer's window as SGLang counts it, without the query's own token; ``NO_WINDOW`` for a global layer."""
    return config.sliding_window - 1 if config.is_local(layer_idx) else NO_WINDOW


class LatentAttention(nn.Module):
    """Multi-head latent attention with absorbed projections: the cache holds one latent a token for all heads.

    Args:
        config: of a family that caches latents.
        layer_idx: the layer.
        scale: factor on scores before the softmax.
        norm: the family's norm, a class of SGLang's.
    """

    def __init__(self, config: Any, layer_idx: int, scale: float, norm: Callable[..., nn.Module], prefix: str) -> None:
        super().__init__()
        heads, hidden, rank = config.num_attention_heads, config.hidden_size, config.kv_lora_rank
        self.num_heads = heads // get_parallel().tp_size
        self.sizes = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        self.latent_sizes = [rank, config.qk_rope_head_dim]
        self.expanded_sizes = [config.qk_nope_head_dim, config.v_head_dim]

        def linear(kind: type[Any], inputs: int, outputs: int, name: str) -> Any:
            return kind(inputs, outputs, bias=False, prefix=f"{prefix}.{name}")

        if config.q_lora_rank is None:
            self.q_proj = linear(ColumnParallelLinear, hidden, heads * sum(self.sizes), "q_proj")
        else:
            self.q_a_proj = linear(ReplicatedLinear, hidden, config.q_lora_rank, "q_a_proj")
            self.q_a_layernorm = norm(config.q_lora_rank, eps=config.rms_norm_eps)
            self.q_b_proj = linear(ColumnParallelLinear, config.q_lora_rank, heads * sum(self.sizes), "q_b_proj")
        self.factored_query = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = linear(ReplicatedLinear, hidden, sum(self.latent_sizes), "kv_a_proj_with_mqa")
        self.kv_a_layernorm = norm(rank, eps=config.rms_norm_eps)
        self.kv_b_proj = linear(ColumnParallelLinear, rank, heads * sum(self.expanded_sizes), "kv_b_proj")
        self.o_proj = linear(RowParallelLinear, heads * config.v_head_dim, hidden, "o_proj")
        self.attn = RadixAttention(
            self.num_heads,
            sum(self.latent_sizes),
            scale,
            num_kv_heads=1,
            layer_id=layer_idx,
            v_head_dim=rank,
            sliding_window_size=window_of(config, layer_idx),
            prefix=f"{prefix}.attn",
        )

    def forward(self, hidden_states: torch.Tensor, rotation: Rotation, forward_batch: ForwardBatch) -> torch.Tensor:
        """Map (tokens, hidden) to the same; the cache is SGLang's to find."""
        expand_key, expand_value = self._expansions()
        q_nope, q_rope = self._query(hidden_states).split(self.sizes, dim=-1)
        q_latent = torch.einsum("thn,hnr->thr", q_nope, expand_key)  # (tokens, heads, rank)
        q = torch.cat((q_latent, rotate_interleaved(q_rope, *rotation)), dim=-1)

        latent, k_rope = self.kv_a_proj_with_mqa(hidden_states)[0].split(self.latent_sizes, dim=-1)
        latent = self.kv_a_layernorm(latent.contiguous())
        k_rope = rotate_interleaved(k_rope.unsqueeze(1), *rotation)  # (tokens, 1, rope_dim)
        k = torch.cat((latent.unsqueeze(1), k_rope), dim=-1)  # (tokens, 1, latent_size)

        attended = self.attn(q, k, latent.unsqueeze(1), forward_batch)
        attended = attended.view(-1, self.num_heads, self.latent_sizes[0])
        return self.o_proj(torch.einsum("thr,hvr->thv", attended, expand_value).flatten(1))[0]

    def _query(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, head_dim)."""
        if self.factored_query:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)[0]))[0]
        else:
            q = self.q_proj(hidden_states)[0]
        return q.view(-1, self.num_heads, sum(self.sizes))

    def _expansions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What makes a latent each head's key (heads, nope_dim, rank) and value (heads, v_head_dim, rank)."""
        weight = self.kv_b_proj.weight.view(self.num_heads, sum(self.expanded_sizes), -1)
        expand_key, expand_value = weight.split(self.expanded_sizes, dim=1)
        return expand_key, expand_value


class GroupedAttention(nn.Module):
    """Grouped-query attention; what positions do to queries and keys is :meth:`position`."""

    def __init__(self, config: Any, layer_idx: int, prefix: str) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=False,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim, config.hidden_size, bias=False, prefix=f"{prefix}.o_proj"
        )
        heads, kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.sizes = [heads * config.head_dim, kv_heads * config.head_dim, kv_heads * config.head_dim]
        self.attn = RadixAttention(
            heads,
            config.head_dim,
            config.head_dim**-0.5,
            num_kv_heads=kv_heads,
            layer_id=layer_idx,
            sliding_window_size=window_of(config, layer_idx),
            prefix=f"{prefix}.attn",
        )

    def position(
        self, q: torch.Tensor, k: torch.Tensor, rotation: Rotation, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give queries and keys (tokens, heads, head_dim) their ``positions`` (tokens,): by RoPE."""
        return rotate_halves(q, *rotation), rotate_halves(k, *rotation)

    def forward(
        self, hidden_states: torch.Tensor, rotation: Rotation, positions: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:
        """Map (tokens, hidden) to the same; the cache is SGLang's to find."""
        q, k, v = self.qkv_proj(hidden_states)[0].split(self.sizes, dim=-1)
        heads = (-1, self.head_dim)
        q, k = self.position(q.unflatten(-1, heads), k.unflatten(-1, heads), rotation, positions)
        return self.o_proj(self.attn(q.flatten(1), k.flatten(1), v, forward_batch))[0]
