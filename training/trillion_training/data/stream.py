"""An endless stream of batches that can be left and taken up again exactly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from trillion_training.data.packing import Batch, Document, best_fit_decreasing, collate
from trillion_training.errors import TrainingError


@dataclass
class StreamPosition:
    """Where a stream is: the next batch of which pass over the documents."""

    epoch: int = 0
    batch: int = 0


class PackedStream:
    """Batches of packed documents, in a new order each epoch; the order depends on seed and epoch alone.

    Args:
        documents: what to train on.
        length: tokens of a row, no less than the longest document.
        rows: rows of a batch; the last batch of an epoch may have fewer.
        pad_id: fills the end of rows.
        seed: decides the order.
        position: where to go on from.

    Raises:
        TrainingError: there is no document, or one is longer than a row.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        length: int,
        rows: int,
        pad_id: int,
        seed: int,
        position: StreamPosition | None = None,
    ) -> None:
        if not documents:
            raise TrainingError("there is nothing to train on: the data file has no documents")
        self.documents = documents
        self.rows = rows
        self.pad_id = pad_id
        self.seed = seed
        self.position = position or StreamPosition()
        self._packed = best_fit_decreasing([len(d.ids) for d in documents], length)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = list(range(len(self._packed)))
            Random(f"{self.seed}:{self.position.epoch}").shuffle(order)
            starts = range(0, len(order), self.rows)
            for start in starts[self.position.batch :]:
                self.position.batch += 1
                rows = [self._packed[i] for i in order[start : start + self.rows]]
                yield collate([[self.documents[i] for i in row] for row in rows], self.pad_id)
            self.position.epoch += 1
            self.position.batch = 0
