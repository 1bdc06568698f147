"""Which attention implementation runs where, the plain one that returns its weights, and grouped-query attention."""

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trillion_model.configuration import FamilyConfig
from trillion_model.layers.rope import rotate_halves


def attention_implementation(device: torch.device | str) -> str:
    """Name of the Transformers attention implementation for ``device``.

    Packed documents and windows need a mask. On a CPU it is explicit and goes to PyTorch's SDPA, which has a
    backward there; on a GPU flex attention skips the blocks that the mask empties.
    """
    return "flex_attention" if torch.device(device).type == "cuda" else "sdpa"


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as Transformers' interface calls it: output (batch, seq, heads, head_dim) and the weights.

    Args:
        module: says by ``num_key_value_groups`` how many query heads share a key and value head.
        query: (batch, heads, seq, head_dim).
        key, value: (batch, key-value heads, kv_seq, its head_dim).
        attention_mask: additive, or None.
        scaling: factor on the scores.
    """
    groups: Any = module.num_key_value_groups
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling  # (batch, heads, seq, kv_seq)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class GroupedQueryAttention(nn.Module):
    """Attention whose query heads share fewer key and value heads, within a window on local layers.

    Args:
        config: the architecture.
        layer_idx: the layer's index, by which its cache is found and its kind known.
    """

    is_causal = True

    def __init__(self, config: FamilyConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.sliding_window = config.sliding_window if config.is_local(layer_idx) else None
        hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
        shared_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, width, bias=False)
        self.k_proj = nn.Linear(hidden, shared_width, bias=False)
        self.v_proj = nn.Linear(hidden, shared_width, bias=False)
        self.o_proj = nn.Linear(width, hidden, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        query_scale: torch.Tensor | None = None,
        attention_mask: Any = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; returns the output (batch, seq, hidden) and, where recorded, the attention weights.

        Args:
            hidden_states: (batch, seq, hidden).
            position_embeddings: cosines and sines, each (batch, seq, head_dim / 2); None for no RoPE.
            query_scale: factors on queries, (batch, seq); None for none.
            attention_mask: as Transformers makes it for the attention implementation.
            past_key_values: the cache of all layers.
        """
        batch, seq, _ = hidden_states.shape
        q, k, v = (
            projection(hidden_states).view(batch, seq, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # (batch, heads, seq, head_dim) each
        if position_embeddings is not None:
            q, k = rotate_halves(q, *position_embeddings), rotate_halves(k, *position_embeddings)
        if query_scale is not None:
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
