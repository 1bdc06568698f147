"""Packing documents into rows, and the stream of batches."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trillion_training.data.packing import IGNORED, Document, best_fit_decreasing, collate
from trillion_training.data.stream import PackedStream, StreamPosition
from trillion_training.errors import TrainingError


def documents(lengths: list[int]) -> list[Document]:
    """Documents with no two tokens the same, so that any token tells where it came from."""
    made, first = [], 1
    for length in lengths:
        made.append(Document(list(range(first, first + length)), [True] * length))
        first += length
    return made


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(lengths)
def test_every_document_is_in_one_row_and_no_row_overflows(lengths: list[int]) -> None:
    rows = best_fit_decreasing(lengths, 40)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 40 for row in rows)


@given(lengths)
def test_no_two_rows_could_be_one(lengths: list[int]) -> None:
    fill = sorted(sum(lengths[i] for i in row) for row in best_fit_decreasing(lengths, 40))
    assert len(fill) < 2 or fill[0] + fill[1] > 40


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"document 1 has 9 tokens, but a row holds 8: raise batching\.length"):
        best_fit_decreasing([8, 9], 8)


def test_collate_keeps_documents_apart() -> None:
    a = Document([5, 6, 7], [False, False, True])
    b = Document([8, 9], [True, True])
    c = Document([10, 11, 12, 13, 14, 15], [False, True, False, True, True, True])
    batch = collate([[a, b], [c]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 0], [10, 11, 12, 13, 14, 15]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]
    x = IGNORED
    assert batch.targets.tolist() == [[x, 7, x, 9, x, x], [11, x, 13, 14, 15, x]]
    assert batch.tokens == 11


@given(lengths, st.integers(1, 5))
def test_an_epoch_is_every_token_once(lengths: list[int], rows: int) -> None:
    stream = PackedStream(documents(lengths), 40, rows, pad_id=0, seed=3)
    seen: list[int] = []
    for batch in stream:
        if stream.position.epoch:
            break
        seen.extend(batch.input_ids[batch.input_ids != 0].tolist())
        if len(seen) >= sum(lengths):
            break
    assert sorted(seen) == list(range(1, sum(lengths) + 1))


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 7, 12])
def test_a_stream_goes_on_exactly_where_it_was_left(taken: int) -> None:
    made = documents([7, 3, 9, 9, 4, 5, 6, 2, 8, 10, 1, 1])
    whole = list(islice(PackedStream(made, 12, 2, pad_id=0, seed=5), 16))
    left = PackedStream(made, 12, 2, pad_id=0, seed=5)
    list(islice(left, taken))
    resumed = PackedStream(made, 12, 2, 0, 5, StreamPosition(left.position.epoch, left.position.batch))
    for expected, batch in zip(whole[taken:], resumed, strict=False):
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert torch.equal(batch.targets, expected.targets)


def test_epochs_and_seeds_differ_in_order() -> None:
    made = documents([4] * 12)
    first = list(islice(PackedStream(made, 4, 12, pad_id=0, seed=0), 2))
    other = next(iter(PackedStream(made, 4, 12, pad_id=0, seed=1)))
    assert not torch.equal(first[0].input_ids, first[1].input_ids)
    assert not torch.equal(first[0].input_ids, other.input_ids)


def test_no_documents_is_an_error() -> None:
    with pytest.raises(TrainingError, match="there is nothing to train on"):
        PackedStream([], 8, 1, pad_id=0, seed=0)
