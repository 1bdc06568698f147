"""Which slots of a paged cache of latents a step reads.

Slot ``block * block_size + offset`` of the flattened cache holds one token's latent and rotary key. A plan depends on
lengths and block tables only, so it is made once a step and shared by every layer of a cache group; it names nothing
outside a request's own visible range, because the blocks before a window have been given away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

DECODE_TOKENS = 4096
"""Latents, padding included, that a group of decoding requests gathers at once; a longer request goes alone."""

PIECE_TOKENS = 2048
"""Latents of a request that decodes alone which are attended to at once: in bfloat16 they fit into 2.25 MiB."""

VIEW_TOKENS = 512
"""Neighbouring latents that are worth a piece of their own: fewer are gathered with others."""


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
class DecodeRequest:
    """A request that decodes alone.

    Attributes:
        row: which request of the step.
        pieces: the latents it reads, in any order: neighbouring slots as a slice, others listed, (tokens,).
    """

    row: int
    pieces: list[slice | torch.Tensor]


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
) -> list[DecodeGroup | DecodeRequest]:
    """Group requests of similar length, so that a group gathers at most ``max_tokens`` latents or is one request.

    Args:
        block_table: (requests, blocks), of each request.
        seq_lens: tokens of each request, the one being decoded included.
        block_size: tokens of a block.
        window: latents that a query sees, or None for all.
    """
    ends = [max(1, n) for n in seq_lens]
    visible = [n if window is None else min(n, window) for n in ends]
    order = sorted(range(len(visible)), key=visible.__getitem__)
    bounds = [0]
    for i, row in enumerate(order):
        if (i + 1 - bounds[-1]) * visible[row] > max_tokens and i > bounds[-1]:
            bounds.append(i)
    bounds.append(len(order))

    plan: list[DecodeGroup | DecodeRequest] = []
    for start, stop in pairwise(bounds):
        if stop - start > 1:
            plan.append(_plan_group(block_table, order[start:stop], ends, visible, block_size))
        else:
            row = order[start]
            runs = _runs(block_table[row].tolist(), ends[row] - visible[row], ends[row], block_size)
            plan.append(DecodeRequest(row, _pieces(runs)))
    return plan


def _plan_group(
    block_table: torch.Tensor, members: list[int], ends: list[int], visible: list[int], block_size: int
) -> DecodeGroup:
    """Requests ``members``, by length, each of which sees the ``visible`` tokens before its end."""
    rows = torch.tensor(members)
    lengths = torch.tensor([visible[row] for row in members])[:, None]
    stops = torch.tensor([ends[row] for row in members])[:, None]
    longest = visible[members[-1]]
    index = torch.arange(longest)[None]  # (1, longest)
    positions = (stops - lengths + index).minimum(stops - 1)  # (group, longest)
    slots = _slots(block_table[rows], positions, block_size).flatten()
    uniform = visible[members[0]] == longest
    return DecodeGroup(rows, slots, None if uniform else (index < lengths)[:, None, None])


def _runs(blocks: Sequence[int], first: int, stop: int, block_size: int) -> list[tuple[int, int]]:
    """Slots of tokens [first, stop) of a request as ranges of neighbours, in the order of memory."""
    runs: list[tuple[int, int]] = []
    for index in sorted(range(first // block_size, -(-stop // block_size)), key=blocks.__getitem__):
        shift = (blocks[index] - index) * block_size
        begin, end = max(first, index * block_size) + shift, min(stop, (index + 1) * block_size) + shift
        if runs and runs[-1][1] == begin:
            begin = runs.pop()[0]
        runs.append((begin, end))
    return runs


def _pieces(runs: Sequence[tuple[int, int]]) -> list[slice | torch.Tensor]:
    """Cut long runs, and list the slots of short ones together."""
    pieces: list[slice | torch.Tensor] = []
    scattered = []
    for begin, end in runs:
        if end - begin < VIEW_TOKENS:
            scattered.append(torch.arange(begin, end))
        else:
            pieces += [slice(cut, min(end, cut + PIECE_TOKENS)) for cut in range(begin, end, PIECE_TOKENS)]
    if scattered:
        pieces += torch.cat(scattered).split(PIECE_TOKENS)
    return pieces


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


def _slots(block_table: torch.Tensor, positions: torch.Tensor, block_size: int) -> torch.Tensor:
    """Slots of ``positions`` (requests, tokens) by ``block_table`` (requests, blocks)."""
    return block_table.long().gather(1, positions // block_size) * block_size + positions % block_size
