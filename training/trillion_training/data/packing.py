"""Packing: documents of different lengths laid into rows of a fixed size with little left empty."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trillion_training.errors import TrainingError

IGNORED = -100
"""Label of a token that is not learned."""


@dataclass(frozen=True)
class Document:
    """A tokenised document.

    Attributes:
        ids: its tokens.
        learned: for each token, whether predicting it is learned.
    """

    ids: list[int]
    learned: list[bool]


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents, each tensor (rows, length).

    Attributes:
        input_ids: tokens, padded at the end of a row.
        position_ids: start again at 0 with each document, which is what keeps documents apart in attention.
        targets: the token after each one within its document, or :data:`IGNORED`.
        tokens: how many there are, padding aside.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    tokens: int


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign documents to rows: longest first, each to the fullest row that still holds it.

    Args:
        lengths: of the documents; none above ``capacity``.
        capacity: tokens of a row.

    Returns:
        For each row the indices of its documents.

    Raises:
        TrainingError: a document is longer than a row.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[i] > capacity:
            raise TrainingError(
                f"document {i} has {lengths[i]} tokens, but a row holds {capacity}: raise batching.length"
            )
        at = bisect_left(open_rows, (lengths[i], -1))
        if at == len(open_rows):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = open_rows.pop(at)
        rows[row].append(i)
        insort(open_rows, (room - lengths[i], row))
    return rows


def collate(rows: Sequence[Sequence[Document]], pad_id: int) -> Batch:
    """Lay rows of documents into tensors as long as the longest row."""
    length = max(sum(len(d.ids) for d in row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_id)
    position_ids = torch.zeros((len(rows), length), dtype=torch.long)
    targets = torch.full((len(rows), length), IGNORED)
    for r, row in enumerate(rows):
        at = 0
        for document in row:
            n = len(document.ids)
            ids = torch.tensor(document.ids)
            input_ids[r, at : at + n] = ids
            position_ids[r, at : at + n] = torch.arange(n)
            learned = torch.tensor(document.learned[1:], dtype=torch.bool)
            targets[r, at : at + n - 1] = torch.where(learned, ids[1:], IGNORED)
            at += n
        # Padding counts on as one document of its own, so that no real token attends to it or from it.
        position_ids[r, at:] = torch.arange(length - at)
    return Batch(input_ids, position_ids, targets, sum(len(d.ids) for row in rows for d in row))
