"""Paged caches of latents with poison in them, and attention over them written out plainly in float64."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Paged:
    """Requests that decode, the cache that they read, and what they should get.

    Attributes:
        q: (requests * queries, heads, rank + rope).
        cache: (blocks, block_size, rank + rope); NaN wherever no query may read, the null block 0 included.
        block_table: (requests, blocks), in random order; blocks before a window are the null block.
        seq_lens: (requests,), 0 where a slot is empty.
        expected: (requests * queries, heads, rank) in float64.
    """

    q: torch.Tensor
    cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    expected: torch.Tensor


def paged(
    lengths: Sequence[int],
    window: int | None = None,
    *,
    heads: int = 12,
    block_size: int = 16,
    rank: int = 64,
    rope: int = 16,
    queries: int = 1,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    cache_scale: float = 1.0,
    wrong_by: int = 0,
    seed: int = 0,
) -> Paged:
    """Make them.

    Args:
        lengths: tokens of each request, its queries included; 0 is an empty slot.
        window: latents that a query sees, or None for all.
        heads, block_size, rank, rope: sizes.
        queries: last tokens of each request that ask.
        scale: factor on scores.
        dtype: of the queries; what is expected follows from their rounded values, and from the cache's.
        cache_dtype: of the cache, where it is another.
        cache_scale: what a cached number stands for, times itself.
        wrong_by: how far the expected window is off, for negative controls.
        seed: of all random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    width = max(-(-max(lengths) // block_size), 1) + 2
    blocks = 1 + len(lengths) * width
    cache = torch.full((blocks, block_size, rank + rope), float("nan"))
    table = torch.zeros(len(lengths), width, dtype=torch.int32)
    free = (torch.randperm(blocks - 1, generator=generator) + 1).tolist()
    q = torch.randn(len(lengths) * queries, heads, rank + rope, generator=generator).to(dtype)
    expected = torch.zeros(len(lengths) * queries, heads, rank, dtype=torch.float64)
    stored = cache_dtype or dtype
    for request, length in enumerate(lengths):
        latents = (torch.randn(length, rank + rope, generator=generator) / cache_scale).to(stored).float()
        first = 0 if window is None else max(0, length - queries + 1 - window)
        for position in range(first, length):
            if table[request, position // block_size] == 0:
                table[request, position // block_size] = free.pop()
            cache[table[request, position // block_size], position % block_size] = latents[position]
        for query in range(queries):
            end = length - queries + 1 + query
            if end <= 0:
                continue
            start = 0 if window is None else max(0, end - (window + wrong_by))
            keys = latents[start:end].double() * cache_scale
            row = request * queries + query
            weights = (q[row].double() @ keys.T * scale).softmax(-1)
            expected[row] = weights @ keys[:, :rank]
    return Paged(q, cache.to(stored), table, torch.tensor(lengths, dtype=torch.int32), expected)
