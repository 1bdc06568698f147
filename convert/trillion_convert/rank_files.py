"""Tensors in the files of several ranks, as ``torch.distributed.checkpoint``'s ``HuggingFaceStorageWriter`` saves them.

With ``save_distributed=True`` every rank writes ``shard-RANK-model-I-of-N.safetensors``, a tensor's part under the
tensor's name, and in the file's metadata under ``DCP_SHARDING_INFO`` where the part begins in each dimension. With
``enable_consolidation=True`` these files lie in ``sharded/`` and are put together beside it, where they are read then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import prod
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from trillion_convert.safetensors_header import Report, StoredTensor, read_header, refuse
from trillion_convert.tensor_files import DTYPES, INDEX, WEIGHTS, TensorFiles, TensorInfo
from trillion_model.errors import CheckpointError
from trillion_model.json_files import parse_object

if TYPE_CHECKING:
    import torch

_PATTERN = "shard-*.safetensors"
_SUBFOLDER = "sharded"
_INFO = "DCP_SHARDING_INFO"


def open_tensors(directory: Path, report: Report = refuse, dtypes: Mapping[str, str] = DTYPES) -> TensorFiles:
    """The tensors of a directory, put together or in the files of several ranks; arguments as for TensorFiles."""
    if not (directory / WEIGHTS).exists() and not (directory / INDEX).exists():
        for folder in (directory, directory / _SUBFOLDER):
            if any(folder.glob(_PATTERN)):
                return RankFiles(folder, report, dtypes)
    return TensorFiles(directory, report, dtypes)


@dataclass(frozen=True)
class _Part:
    """A rank's part of a tensor: where it begins in each dimension, and what the file's header says of it."""

    file: str
    offsets: tuple[int, ...]
    stored: StoredTensor

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(offset + size for offset, size in zip(self.offsets, self.stored.shape, strict=True))

    def overlaps(self, other: "_Part") -> bool:
        sides = zip(self.offsets, self.ends, other.offsets, other.ends, strict=True)
        return all(begin < other_end and other_begin < end for begin, end, other_begin, other_end in sides)


class RankFiles(TensorFiles):
    """The tensors of a directory of ranks' files; arguments and errors as for TensorFiles."""

    def __init__(self, directory: Path, report: Report = refuse, dtypes: Mapping[str, str] = DTYPES) -> None:
        self.directory = directory
        self._parts: dict[str, list[_Part]] = {}
        self._raw, self._opening, self._lost = {}, Lock(), set()
        for path in sorted(directory.glob(_PATTERN)):
            try:
                self._take_file(path, report)
            except CheckpointError as error:
                report(error)
        self._file_of = {name: parts[0].file for name, parts in self._parts.items()}
        self._infos = {}
        for name, parts in self._parts.items():
            problem = _problem(parts, dtypes)
            if problem:
                report(CheckpointError(f"{name}: {problem}"))
            else:
                self._infos[name] = TensorInfo(_shape(parts), dtypes[parts[0].stored.dtype])

    def read(self, name: str) -> "torch.Tensor":
        """A tensor in memory of its own."""
        info = self._infos[name]
        return self.read_range(name, 0, prod(info.shape)).view(info.shape)

    def read_range(self, name: str, start: int, stop: int) -> "torch.Tensor":
        import torch

        info = self._infos[name]
        shape = info.shape or (1,)
        row = prod(shape[1:])
        first, last = start // row, -(-stop // row)
        if all(part.stored.shape[1:] == info.shape[1:] for part in self._parts[name]):
            numbers = torch.empty(stop - start, dtype=getattr(torch, info.dtype))
            for part in self._parts[name]:
                begin = part.offsets[0] * row if part.offsets else 0
                low, high = max(start, begin), min(stop, begin + prod(part.stored.shape))
                if low < high:
                    offset = part.stored.begin + (low - begin) * numbers.itemsize
                    self._fill(numbers[low - start : high - start], name, part.file, offset)
            return numbers
        rows = torch.empty((last - first, *shape[1:]), dtype=getattr(torch, info.dtype))
        for part in self._parts[name]:
            self._place(rows, name, part, first, last)
        return rows.view(-1)[start - first * row : stop - first * row]

    def _place(self, rows: "torch.Tensor", name: str, part: _Part, first: int, last: int) -> None:
        """Copy what a part has of the rows ``first`` to ``last`` to where it belongs in them."""
        import torch

        low, high = max(first, part.offsets[0]), min(last, part.ends[0])
        if low >= high:
            return
        numbers = torch.empty((high - low, *part.stored.shape[1:]), dtype=rows.dtype)
        before = (low - part.offsets[0]) * prod(part.stored.shape[1:])
        self._fill(numbers, name, part.file, part.stored.begin + before * rows.itemsize)
        sides = [slice(low - first, high - first)]
        sides += [slice(begin, end) for begin, end in zip(part.offsets[1:], part.ends[1:], strict=True)]
        rows[tuple(sides)] = numbers

    def _take_file(self, path: Path, report: Report) -> None:
        from safetensors import SafetensorError, safe_open

        header = read_header(path, report)
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(_INFO)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is truncated or not safetensors: {error}") from error
        if text is None:
            raise CheckpointError(f"{path} has no {_INFO} in its metadata; was it saved with save_distributed=True?")
        info = parse_object(text.encode(), f"{_INFO} in {path}")
        for name, stored in header.tensors.items():
            entry = info.get(name)
            offsets = entry.get("saved_offsets") if isinstance(entry, dict) else None
            if not isinstance(offsets, list) or len(offsets) != len(stored.shape) or not all(map(_is_offset, offsets)):
                report(CheckpointError(f"{name}: saved_offsets are {offsets!r} in {path}, for {stored.shape}"))
                continue
            self._parts.setdefault(name, []).append(_Part(path.name, tuple(offsets), stored))


def _shape(parts: list[_Part]) -> tuple[int, ...]:
    return tuple(max(ends) for ends in zip(*(part.ends for part in parts), strict=True))


def _problem(parts: list[_Part], dtypes: Mapping[str, str]) -> str | None:
    """What is wrong with a tensor's parts; None where they are one tensor."""
    stored = sorted({part.stored.dtype for part in parts})
    if len(stored) > 1:
        return f"its parts are {' and '.join(stored)}; they must have one dtype"
    if stored[0] not in dtypes:
        return f"stored as {stored[0]}, but weights are one of {', '.join(dtypes)}"
    for one, other in combinations(parts, 2):
        if one.overlaps(other):
            return f"its parts in {one.file} and {other.file} overlap"
    if sum(prod(part.stored.shape) for part in parts) != prod(_shape(parts)):
        return "its parts leave a gap; the file of a rank is missing"
    return None


def _is_offset(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
