"""Attention over a paged cache of latents, in plain PyTorch: what the engine's backend computes with.

The cache is read by slot: slot ``block * block_size + offset`` of the flattened cache holds one token's latent and
rotary key. A plan lists the slots that a step reads. It depends on lengths and block tables only, so it is made once
a step and shared by every layer of a cache group; it names nothing outside a request's own visible range, because
the blocks before a window have been given away.

Prefill projects the visible latents up to every head's keys and values and attends in blocks of queries, each over
its own band of keys; a long context without a window is projected a chunk at a time. Decode attends to the latents
themselves (absorbed projections), several requests at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

QUERY_BLOCK = 128
"""Queries that attend at once in prefill: bounds a mask at QUERY_BLOCK x (QUERY_BLOCK + visible keys)."""

KEY_CHUNK = 2048
"""Latents that prefill projects up at once where there is no window: bounds the memory of a long context."""

DECODE_TOKENS = 4096
"""Latents, padding included, that a group of decoding requests gathers at once; a longer request goes alone. Short
requests gain by company; a group that outgrows the processor's cache loses."""

PIECE_TOKENS = 2048
"""Latents of a request that decodes alone which are attended to at once: in bfloat16 they fit into 2.25 MiB."""

Expand = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Latents with rotary keys (keys, latent_size) to keys and values (keys, heads, head_dim), of one head size."""


@dataclass(frozen=True)
class DecodeGroup:
    """Requests that decode together.

    Attributes:
        rows: which requests of the step, (group,).
        slots: the latents they read, (group * longest,); short requests repeat their last slot.
        mask: true where a slot counts, (group, 1, 1, longest); None where all do.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class PrefillRequest:
    """A request's new tokens.

    Attributes:
        rows: its queries among the step's prefill tokens.
        slots: the latents that any of them sees, (keys,), its own included.
        offset: number of those that precede the first query.
    """

    rows: slice
    slots: torch.Tensor
    offset: int


def plan_decode(
    block_table: torch.Tensor,
    seq_lens: Sequence[int],
    block_size: int,
    window: int | None,
    max_tokens: int = DECODE_TOKENS,
) -> list[DecodeGroup]:
    """Group requests of similar length, so that a group gathers at most ``max_tokens`` latents or is one request.

    Args:
        block_table: (requests, blocks), of each request.
        seq_lens: tokens of each request, the one being decoded included.
        block_size: tokens of a block.
        window: latents that a query sees, or None for all.
    """
    visible = [max(1, n if window is None else min(n, window)) for n in seq_lens]
    order = sorted(range(len(visible)), key=visible.__getitem__)
    bounds = [0]
    for i, row in enumerate(order):
        if (i + 1 - bounds[-1]) * visible[row] > max_tokens and i > bounds[-1]:
            bounds.append(i)
    bounds.append(len(order))

    device = block_table.device
    groups = []
    for start, stop in pairwise(bounds):
        members = order[start:stop]
        lengths = torch.tensor([visible[row] for row in members], device=device)[:, None]
        ends = torch.tensor([max(1, seq_lens[row]) for row in members], device=device)[:, None]
        rows = torch.tensor(members, device=device)
        longest = visible[members[-1]]
        index = torch.arange(longest, device=device)[None]  # (1, longest)
        positions = (ends - lengths + index).minimum(ends - 1)  # (group, longest)
        slots = _slots(block_table[rows], positions, block_size).flatten()
        uniform = visible[members[0]] == longest
        groups.append(DecodeGroup(rows, slots, None if uniform else (index < lengths)[:, None, None]))
    return groups


def plan_prefill(
    block_table: torch.Tensor,
    seq_lens: Sequence[int],
    query_starts: Sequence[int],
    block_size: int,
    window: int | None,
) -> list[PrefillRequest]:
    """List what each request's new tokens read: [max(0, context - window + 1), seq_len).

    Args:
        block_table: (requests, blocks).
        seq_lens: tokens of each request, new ones included.
        query_starts: first new token of each request among the step's, and their end: (requests + 1,).
        block_size: tokens of a block.
        window: keys that a query sees, or None for all.
    """
    plan = []
    for request, seq_len in enumerate(seq_lens):
        rows = slice(query_starts[request], query_starts[request + 1])
        context = seq_len - (rows.stop - rows.start)
        first = 0 if window is None else max(0, context - window + 1)
        positions = torch.arange(first, seq_len, device=block_table.device)[None]
        slots = _slots(block_table[request : request + 1], positions, block_size)[0]
        plan.append(PrefillRequest(rows, slots, context - first))
    return plan


def decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    groups: Sequence[DecodeGroup],
    scale: float,
    workspace: torch.Tensor,
) -> torch.Tensor:
    """One query a request over the latents that its group gathers.

    Args:
        q: (requests, heads, latent_size), queries with the key projection absorbed.
        cache: (slots, latent_size).
        groups: from :func:`plan_decode`.
        scale: factor on scores.
        workspace: (any, latent_size), as large as the largest group: fresh memory at every step costs more than the
            gathering itself.

    Returns:
        (requests, heads, latent_size); the caller drops what belongs to the rotary key.
    """
    out = torch.empty_like(q)
    for group in groups:
        if len(group.rows) == 1 and len(group.slots) > PIECE_TOKENS:
            out[group.rows] = _decode_alone(q[group.rows[0]], cache, group.slots, scale, workspace)
            continue
        gathered = workspace[: len(group.slots)]
        torch.index_select(cache, 0, group.slots, out=gathered)
        latents = gathered.view(len(group.rows), 1, -1, q.shape[-1])  # (group, 1, longest, latent_size)
        # One "head" of many queries, keys and values the same tensor: the fused kernel takes it without a copy.
        out[group.rows] = F.scaled_dot_product_attention(
            q[group.rows].unsqueeze(1), latents, latents, attn_mask=group.mask, scale=scale
        ).squeeze(1)
    return out


def _decode_alone(
    q: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, scale: float, workspace: torch.Tensor
) -> torch.Tensor:
    """One request's query (heads, latent_size), over pieces of its latents: an online softmax.

    A piece is small enough to be in the processor's cache still when it is used the second time.
    """
    highest = q.new_full((len(q), 1), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(highest)
    out = torch.zeros_like(q, dtype=torch.float32)
    for piece in slots.split(PIECE_TOKENS):
        latents = workspace[: len(piece)]
        torch.index_select(cache, 0, piece, out=latents)
        scores = torch.mm(q, latents.T).float().mul_(scale)  # (heads, piece)
        new_highest = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights = scores.sub_(new_highest).exp_()
        fade = (highest - new_highest).exp_()
        total.mul_(fade).add_(weights.sum(-1, keepdim=True))
        out.mul_(fade).add_(torch.mm(weights.to(q.dtype), latents))
        highest = new_highest
    return out.div_(total).to(q.dtype)


def prefill(
    q: torch.Tensor,
    cache: torch.Tensor,
    requests: Sequence[PrefillRequest],
    expand: Expand,
    window: int | None,
    scale: float,
    out: torch.Tensor,
) -> None:
    """Attend from each request's new tokens and write into ``out``.

    Args:
        q: (tokens, heads, qk_head_dim).
        cache: (slots, latent_size), the new tokens' latents written already.
        requests: from :func:`plan_prefill`.
        expand: see :data:`Expand`.
        window: keys that a query sees, or None for all.
        scale: factor on scores.
        out: (tokens, heads, v_head_dim).
    """
    for request in requests:
        if window is None and len(request.slots) > KEY_CHUNK:
            _attend_in_chunks(q[request.rows], cache, request, expand, scale, out[request.rows])
        else:
            k, v = expand(cache[request.slots])
            banded_attention(q[request.rows], k, v, request.offset, window, scale, out[request.rows])


def _attend_in_chunks(
    q: torch.Tensor, cache: torch.Tensor, request: PrefillRequest, expand: Expand, scale: float, out: torch.Tensor
) -> None:
    """Causal attention of one request over chunks of its keys, added up by their log-sum-exp.

    Args:
        q: (queries, heads, qk_head_dim).
        cache: (slots, latent_size).
        request: whose queries they are.
        expand: see :data:`Expand`.
        scale: factor on scores.
        out: (queries, heads, v_head_dim), written.
    """
    q = q.transpose(0, 1).unsqueeze(0)  # (1, heads, queries, head_dim)
    queries = q.shape[2]
    result = out.new_zeros(1, q.shape[1], queries, out.shape[-1], dtype=torch.float32)
    log_sum = result.new_full(result.shape[:-1], float("-inf"))  # (1, heads, queries)
    for start in range(0, len(request.slots), KEY_CHUNK):
        k, v = (
            x.transpose(0, 1).unsqueeze(0) for x in expand(cache[request.slots[start : start + KEY_CHUNK]])
        )  # (1, heads, keys, head_dim)
        offset = request.offset - start  # of the first query, among the chunk's keys
        for rows, keys in _visible(queries, offset, k.shape[2]):
            mask = None
            if offset + rows.start < keys - 1:
                position = torch.arange(offset + rows.start, offset + rows.stop, device=q.device)[:, None]
                unseen = torch.arange(keys, device=q.device)[None] > position
                mask = q.new_zeros(unseen.shape).masked_fill_(unseen, float("-inf"))
            block, block_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows], k[:, :, :keys], v[:, :, :keys], attn_mask=mask, scale=scale
            )
            both = torch.logaddexp(log_sum[:, :, rows], block_sum)
            result[:, :, rows] *= (log_sum[:, :, rows] - both).exp().unsqueeze(-1)
            result[:, :, rows] += block[..., : out.shape[-1]] * (block_sum - both).exp().unsqueeze(-1)
            log_sum[:, :, rows] = both
    out.copy_(result[0].transpose(0, 1))


def _visible(queries: int, offset: int, keys: int) -> Iterator[tuple[slice, int]]:
    """Queries that attend at once, and how many of ``keys`` any of them sees; query i is at key ``offset + i``."""
    first = max(0, -offset)
    if offset + first >= keys - 1:
        yield slice(first, queries), keys
        return
    for start in range(first, queries, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, queries)
        yield slice(start, stop), min(offset + stop, keys)


def banded_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offset: int,
    window: int | None,
    scale: float,
    out: torch.Tensor,
    query_block: int = QUERY_BLOCK,
) -> None:
    """Causal attention in blocks of queries; query i is at position ``offset + i`` of the keys.

    Args:
        q: (queries, heads, head_dim).
        k, v: (keys, heads, head_dim): values padded to the keys' size, which the fused kernel asks for.
        offset: keys that precede the first query.
        window: keys that a query sees, itself included, or None for all before it.
        scale: factor on scores.
        out: (queries, heads, v_head_dim), written.
    """
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1, heads, tokens, head_dim)
    queries = q.shape[2]
    for start in range(0, queries, query_block):
        stop = min(start + query_block, queries)
        first = 0 if window is None else max(0, offset + start - window + 1)
        end = offset + stop
        position = torch.arange(offset + start, end, device=q.device)[:, None]
        key = torch.arange(first, end, device=q.device)[None]
        mask = key <= position  # (block, keys)
        if window is not None:
            mask &= key > position - window
        block = F.scaled_dot_product_attention(
            q[:, :, start:stop], k[:, :, first:end], v[:, :, first:end], attn_mask=mask, scale=scale
        )
        out[start:stop] = block[0, ..., : out.shape[-1]].transpose(0, 1)


def _slots(block_table: torch.Tensor, positions: torch.Tensor, block_size: int) -> torch.Tensor:
    """Slots of ``positions`` (requests, tokens) by ``block_table`` (requests, blocks)."""
    return block_table.long().gather(1, positions // block_size) * block_size + positions % block_size
