"""From one form of a checkpoint to another: which numbers of which file every number of the target is.

Nearly every tensor of a form is made of published tensors that lie in it in one piece: an expert in a stack, the gate's
rows before the up rows. Which piece is found by running the form's table on a tensor without storage and looking where
the views that come back begin. Such tensors are copied range by range, however large they are. The others (transposed
or interleaved ones) are made whole in memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint
from trillion_convert.forms import FORMS, Form, Table
from trillion_convert.streaming import PIECE, Output, computed
from trillion_convert.tensor_files import TensorFiles, TensorInfo
from trillion_model.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from trillion_model.architecture import Architecture
    from trillion_model.layout import Shape


@dataclass(frozen=True)
class Part:
    """A published tensor within a tensor of some form.

    Attributes:
        holder: the tensor that it is in.
        start: where its first number is, the holder laid out flat; None where it does not lie there in one piece.
        numbers: how many it has.
    """

    holder: str
    start: int | None
    numbers: int


@dataclass(frozen=True)
class Range:
    """Numbers ``start`` to ``stop`` of a stored tensor."""

    name: str
    start: int
    stop: int


class PublishedReader:
    """Published tensors out of a checkpoint of any form.

    Args:
        checkpoint: where they are.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors = checkpoint.tensors
        self._table = FORMS[checkpoint.form].table(checkpoint.architecture)
        self.parts = {
            published: part
            for name, info in checkpoint.tensors.items()
            for published, part in parts_of(self._table, name, info.shape).items()
        }

    def read(self, published: str) -> "torch.Tensor":
        """One published tensor, in memory of its own."""
        part = self.part(published)
        info = self.tensors[part.holder]
        whole = self.tensors.read_range(part.holder, 0, prod(info.shape)).view(info.shape)
        return self._table.to_published(part.holder, whole)[published]

    def part(self, published: str) -> Part:
        """Where a published tensor is.

        Raises:
            CheckpointError: it is nowhere.
        """
        if published not in self.parts:
            raise CheckpointError(f"{self.tensors.directory} lacks {published}")
        return self.parts[published]


def outputs(
    checkpoint: Checkpoint, form: Form, architecture: "Architecture", dtypes: Mapping[str, str]
) -> dict[str, Output]:
    """Every tensor of ``architecture`` in ``form``, out of a checkpoint of any form.

    Args:
        checkpoint: the source.
        form: the target's.
        architecture: the target's, which may lack tensors that the source has.
        dtypes: for every published name the dtype to store it in.

    Raises:
        CheckpointError: a tensor cannot be had from the source, or its parts have several dtypes.
    """
    reader, table = PublishedReader(checkpoint), FORMS[form].table(architecture)
    made: dict[str, Output] = {}
    for name, shape in FORMS[form].shapes(architecture).items():
        parts = parts_of(table, name, shape)
        stored = {dtypes[published] for published in parts}
        if len(stored) > 1:
            raise CheckpointError(f"{name}: its parts are {' and '.join(sorted(stored))}; choose one with --dtype")
        info = TensorInfo(tuple(shape), stored.pop())
        ranges = _ranges(reader, parts)
        if ranges is not None and sum(piece.stop - piece.start for piece in ranges) == prod(shape):
            made[name] = Output(info, partial(read_ranges, reader.tensors, ranges, info.dtype))
        else:
            made |= _whole(reader, table, name, info, parts)
    return made


def parts_of(table: Table, name: str, shape: "Shape") -> dict[str, Part]:
    """The published tensors within one tensor of a form."""
    import torch

    whole = torch.empty(shape, device="meta")
    parts = {}
    for published, part in table.to_published(name, whole).items():
        a_view = part is whole or part._base is whole
        parts[published] = Part(
            name, int(part.storage_offset()) if a_view and part.is_contiguous() else None, part.numel()
        )
    return parts


def read_ranges(tensors: TensorFiles, ranges: list[Range], dtype: str) -> "Iterator[torch.Tensor]":
    """The numbers of several ranges one after the other, a little at a time, in ``dtype``."""
    import torch

    for piece in ranges:
        step = PIECE // getattr(torch, tensors[piece.name].dtype).itemsize
        for start in range(piece.start, piece.stop, step):
            numbers = tensors.read_range(piece.name, start, min(start + step, piece.stop))
            yield numbers.to(getattr(torch, dtype))


def _ranges(reader: PublishedReader, parts: Mapping[str, Part]) -> list[Range] | None:
    """What to copy, in the target's order; None where some of it lies in pieces."""
    pieces: list[tuple[int, Range]] = []
    for published, place in parts.items():
        held = reader.part(published)
        if place.start is None or held.start is None:
            return None
        pieces.append((place.start, Range(held.holder, held.start, held.start + held.numbers)))
    joined: list[Range] = []
    for _, piece in sorted(pieces, key=lambda item: item[0]):
        if joined and joined[-1].name == piece.name and joined[-1].stop == piece.start:
            joined[-1] = Range(piece.name, joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined


def _whole(
    reader: PublishedReader, table: Table, name: str, info: TensorInfo, parts: Mapping[str, Part]
) -> dict[str, Output]:
    def produce() -> "dict[str, torch.Tensor]":
        import torch

        return {name: table.to_module(name, info.shape, reader.read).to(getattr(torch, info.dtype))}

    holders = {reader.part(published).holder for published in parts}
    held = 2 * sum(reader.tensors[holder].nbytes for holder in holders) + 2 * info.nbytes
    return computed({name: info}, produce, held=held)
