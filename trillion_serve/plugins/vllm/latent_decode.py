"""A fused Triton kernel: decode over a paged cache of latents, within a window or over the whole context.

A latent serves every head as key and, less its rotary part, as value, so a program reads it once for a group of heads
and multiplies on tensor cores. The context is split over programs, each of which leaves a normalised result and its
log-sum-exp; a second kernel adds the splits up. The grid follows from shapes and static bounds, lengths are read on
the device, and nothing waits for the host, so that launches can be captured in a CUDA graph.

A window bounds what is read, not only what counts: blocks before it have been given to others.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_LEAST_HEADS = 16
"""Rows that a tensor core multiplies at least."""
_MOST_HEADS = 32
"""Heads of one program: their accumulators, (heads, rank) in float32, stay in registers."""


@dataclass(frozen=True)
class Tiling:
    """How a launch is cut.

    Attributes:
        tokens: latents that a program reads at once.
        programs: that keep a device busy; the context is split until there are about as many.
        stages: tiles in flight.
    """

    tokens: int = 32
    programs: int = 256
    stages: int = 2


DEFAULT_TILING = Tiling()


def splits(rows: int, heads: int, longest: int, tiling: Tiling = DEFAULT_TILING) -> int:
    """Parts that the context is split into, a power of two; of shapes and bounds only.

    Args:
        rows: queries of the batch, padding included.
        heads: of each query.
        longest: latents that a query can see at most.
        tiling: how a launch is cut.
    """
    groups = triton.cdiv(heads, _head_block(heads))
    wanted = max(1, tiling.programs // max(1, rows * groups))
    return min(triton.next_power_of_2(triton.cdiv(longest, tiling.tokens)), _power_of_two_below(wanted))


def decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    rank: int,
    scale: float,
    window: int | None,
    longest: int,
    cache_scale: torch.Tensor | None = None,
    tiling: Tiling = DEFAULT_TILING,
) -> torch.Tensor:
    """Attend from the last tokens of each request to its cached latents.

    Args:
        q: (requests * queries, heads, rank + rope_dim), the key projection absorbed; a request's queries are its last
            tokens, in order.
        cache: (blocks, block_size, rank + rope_dim), in the dtype of ``q`` or float8_e4m3fn; blocks and tokens may be
            apart in memory.
        block_table: (requests, any) in int32.
        seq_lens: (requests,) in int32, the queries included; 0 for an empty slot, which yields zeros and reads nothing.
        rank: numbers of a latent that are its value, a power of two, as are the rotary ones.
        scale: factor on scores.
        window: latents that a query sees, itself included, or None for all.
        longest: a bound on what a query sees, that sizes the grid: the window, or the longest context.
        cache_scale: (1,) in float32, what a cached number is to be multiplied by; None for 1.
        tiling: how a launch is cut.

    Returns:
        (requests * queries, heads, rank), in the dtype of ``q``.
    """
    rows, heads, _ = q.shape
    rope_dim = q.shape[-1] - rank
    queries = rows // max(1, len(seq_lens))
    assert rows == queries * len(seq_lens), f"{rows} queries of {len(seq_lens)} requests: each needs as many"
    assert q.stride(-1) == 1 and cache.stride(-1) == 1 and block_table.stride(-1) == 1
    out = q.new_empty(rows, heads, rank)
    if rows == 0:
        return out
    parts = splits(rows, heads, longest, tiling)
    # (rows, heads, parts, result and log-sum-exp): some megabytes at most, for there are parts only if rows are few.
    scratch = q.new_empty((rows, heads, parts, rank + 1) if parts > 1 else (1, 1, 1, 1), dtype=torch.float32)
    head_block = _head_block(heads)
    bounds = {"TOKENS": tiling.tokens, "PARTS": parts, "WINDOW": window or 0, "QUERIES": queries, "RANK": rank}
    _attend[rows, triton.cdiv(heads, head_block), parts](
        q,
        cache,
        block_table,
        seq_lens,
        cache_scale,
        scratch,
        out,
        scale,
        heads,
        cache.shape[1],
        *q.stride()[:2],
        *cache.stride()[:2],
        block_table.stride(0),
        *scratch.stride()[:3],
        *out.stride()[:2],
        **bounds,
        ROPE=rope_dim,
        HEADS=head_block,
        SCALED=cache_scale is not None,
        num_warps=head_block // 4,
        num_stages=tiling.stages,
    )
    if parts > 1:
        _add_up[rows, heads](
            scratch, seq_lens, out, *scratch.stride()[:3], *out.stride()[:2], **bounds, num_warps=4, num_stages=1
        )
    return out


@triton.jit
def _visible(seq_lens, row, QUERIES: tl.constexpr, WINDOW: tl.constexpr):
    """First position that the query ``row`` sees and the one after its last; both 0 for an empty slot."""
    length = tl.load(seq_lens + row // QUERIES)
    end = tl.maximum(length - QUERIES + 1 + row % QUERIES, 0)
    first = end * 0
    if WINDOW > 0:
        first = tl.maximum(end - WINDOW, 0)
    return first, end


@triton.jit
def _share(first, end, TOKENS: tl.constexpr, PARTS: tl.constexpr):
    """Tokens of one part: whole tiles, so that only the last part may be short; 0 if there are no tokens."""
    return tl.cdiv(tl.cdiv(end - first, PARTS), TOKENS) * TOKENS


@triton.jit
def _attend(
    q,
    cache,
    block_table,
    seq_lens,
    cache_scale,
    scratch,
    out,
    scale,
    heads,
    block_size,
    q_row,
    q_head,
    cache_block,
    cache_token,
    table_row,
    scratch_row,
    scratch_head,
    scratch_part,
    out_row,
    out_head,
    TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    HEADS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One query's group of heads over one part of its context."""
    row, part = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_head = head < heads
    first, end = _visible(seq_lens, row, QUERIES, WINDOW)
    share = _share(first, end, TOKENS, PARTS)
    start = first + part * share
    stop = tl.minimum(start + share, end)
    dim, rope = tl.arange(0, RANK), tl.arange(0, ROPE)
    if start >= stop:
        if PARTS == 1:
            tl.store(
                out + row.to(tl.int64) * out_row + head[:, None] * out_head + dim[None],
                tl.zeros([HEADS, RANK], dtype=out.dtype.element_ty),
                mask=is_head[:, None],
            )
        return

    q_at = q + row.to(tl.int64) * q_row + head[:, None] * q_head
    q_latent = tl.load(q_at + dim[None], mask=is_head[:, None], other=0.0)  # (HEADS, RANK)
    q_rope = tl.load(q_at + RANK + rope[None], mask=is_head[:, None], other=0.0)  # (HEADS, ROPE)
    factor = scale
    if SCALED:
        factor = scale * tl.load(cache_scale)

    largest = tl.full([HEADS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([HEADS], dtype=tl.float32)
    sums = tl.zeros([HEADS, RANK], dtype=tl.float32)
    table = block_table + (row // QUERIES).to(tl.int64) * table_row
    for base in range(start, stop, TOKENS):
        position = base + tl.arange(0, TOKENS)
        is_token = position < stop
        block = tl.load(table + position // block_size, mask=is_token, other=0).to(tl.int64)
        at = cache + block * cache_block + (position % block_size) * cache_token
        latent = tl.load(at[:, None] + dim[None], mask=is_token[:, None], other=0.0).to(q_latent.dtype)
        k_rope = tl.load(at[:, None] + RANK + rope[None], mask=is_token[:, None], other=0.0).to(q_latent.dtype)
        scores = tl.dot(q_latent, tl.trans(latent), input_precision="ieee")
        scores = tl.dot(q_rope, tl.trans(k_rope), scores, input_precision="ieee")  # (HEADS, TOKENS)
        scores = tl.where(is_token[None], scores * factor, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp(largest - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(latent.dtype), latent, sums * shrink[:, None], input_precision="ieee")
        largest = higher

    result = sums / total[:, None]
    if SCALED:
        result = result * tl.load(cache_scale)
    if PARTS == 1:
        tl.store(
            out + row.to(tl.int64) * out_row + head[:, None] * out_head + dim[None],
            result.to(out.dtype.element_ty),
            mask=is_head[:, None],
        )
    else:
        at = scratch + row.to(tl.int64) * scratch_row + head * scratch_head + part * scratch_part
        tl.store(at[:, None] + dim[None], result, mask=is_head[:, None])
        tl.store(at + RANK, largest + tl.log(total), mask=is_head)


@triton.jit
def _add_up(
    scratch,
    seq_lens,
    out,
    scratch_row,
    scratch_head,
    scratch_part,
    out_row,
    out_head,
    TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,
    RANK: tl.constexpr,
):
    """Average the parts of one head of one query, each by its share of the softmax's sum."""
    row, head = tl.program_id(0), tl.program_id(1)
    first, end = _visible(seq_lens, row, QUERIES, WINDOW)
    share = _share(first, end, TOKENS, PARTS)
    dim = tl.arange(0, RANK)
    largest = float("-inf")
    total = 0.0
    sums = tl.zeros([RANK], dtype=tl.float32)
    at = scratch + row.to(tl.int64) * scratch_row + head * scratch_head
    for part in range(PARTS):
        if part * share < end - first:  # the other parts were empty, and wrote nothing
            log_sum = tl.load(at + part * scratch_part + RANK)
            higher = tl.maximum(largest, log_sum)
            shrink = tl.exp(largest - higher)
            weight = tl.exp(log_sum - higher)
            total = total * shrink + weight
            sums = sums * shrink + weight * tl.load(at + part * scratch_part + dim)
            largest = higher
    result = tl.where(end > first, sums / total, 0.0)
    tl.store(out + row.to(tl.int64) * out_row + head * out_head + dim, result.to(out.dtype.element_ty))


def _head_block(heads: int) -> int:
    return min(_MOST_HEADS, max(_LEAST_HEADS, triton.next_power_of_2(heads)))


def _power_of_two_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)
