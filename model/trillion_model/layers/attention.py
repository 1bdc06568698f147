"""Which attention implementation runs where, and the plain one that returns its weights."""

from typing import Any

import torch
from torch import nn


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
