"""The header of a safetensors file, held against the file: what is wrong is said of a tensor, by its name.

The format: eight bytes of header length, a JSON header of names, dtypes, shapes and offsets, then the tensors, one
behind the other without gaps (https://github.com/huggingface/safetensors, README). The library refuses the same
files, but seldom says which tensor is to blame, and stops at the first.
"""

import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from trillion_model.errors import CheckpointError, TrillionError
from trillion_model.json_files import parse_object

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of a number, by the format's dtype names."""

_LENGTH = 8
_MOST_HEADER = 100 * 2**20
"""Bytes; the library's own limit."""
_PICKLE_STARTS = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))
"""What ``torch.save`` writes: a zip archive of a pickle, or a bare pickle."""
_FIELDS = {"dtype", "shape", "data_offsets"}

Report = Callable[[TrillionError], None]
"""Takes what is wrong; returns where the caller is to go on and look for more."""


def refuse(error: TrillionError) -> None:
    """The strict :data:`Report`: the first thing that is wrong is raised."""
    raise error


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of a tensor.

    Attributes:
        dtype: the format's name.
        shape: sizes.
        begin, end: its bytes, from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's tensors, in the header's order.

    Attributes:
        tensors: those that lie where the header says.
        unsound: names of the others, which were reported.
    """

    tensors: dict[str, StoredTensor]
    unsound: tuple[str, ...]


def read_header(path: Path, report: Report = refuse) -> Header:
    """Read the header of a file.

    Raises:
        CheckpointError: the file is no safetensors file at all, or whatever ``report`` raises it for.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not safetensors, but a directory or a device; put the file there")
        with path.open("rb") as file:
            length = _header_length(path, file.read(_LENGTH + 1), status.st_size)
            file.seek(_LENGTH)
            header = parse_object(file.read(length), f"the header of {path}")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    _check_metadata(path, header.pop("__metadata__", {}), report)
    data = _LENGTH + length
    stored: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if problem := _entry_problem(entry):
            report(CheckpointError(f"{name}: {problem}, in the header of {path}"))
            continue
        begin, end = entry["data_offsets"]
        stored[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), data + begin, data + end)
    _check_places(path, stored, data, status.st_size, report, complete=len(stored) == len(header))
    sound = {name: tensor for name, tensor in stored.items() if tensor.end <= status.st_size}
    return Header(sound, tuple(name for name in header if name not in sound))


def _header_length(path: Path, start: bytes, size: int) -> int:
    """The length of the header, from the file's first nine bytes."""
    damaged = f"{path} is truncated or not safetensors"
    prefix, brace = start[:_LENGTH], start[_LENGTH:]
    # A header may well be as long as these bytes read as a number, but then it begins behind them.
    if prefix.startswith(_PICKLE_STARTS) and brace != b"{":
        raise CheckpointError(
            f"{path} is a pickle under the name of safetensors, and can run code when it is read; save it as "
            "safetensors first"
        )
    if len(prefix) < _LENGTH:
        raise CheckpointError(f"{damaged}: it has {size} bytes, but begins with eight of header length")
    length: int = struct.unpack("<Q", prefix)[0]
    if length > _MOST_HEADER:
        raise CheckpointError(f"{damaged}: its header length is {length:,} bytes, but {_MOST_HEADER:,} are the most")
    if _LENGTH + length > size:
        raise CheckpointError(f"{damaged}: its header takes {length:,} bytes, but the whole file has {size:,}")
    return length


def _check_metadata(path: Path, metadata: Any, report: Report) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        report(CheckpointError(f"__metadata__: must be an object of texts, in the header of {path}"))


def _entry_problem(entry: Any) -> str | None:
    """What is wrong with a header's entry by itself."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        return f"must be an object of {', '.join(sorted(_FIELDS))}"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"dtype is {dtype!r}, but must be one of {', '.join(ITEM_BYTES)}"
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        return f"shape is {shape!r}, but must be a list of whole numbers of 0 or more"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        return f"data_offsets are {offsets!r}, but must be two whole numbers of 0 or more"
    needed, given = prod(shape) * ITEM_BYTES[dtype], offsets[1] - offsets[0]
    if needed != given:
        return f"data_offsets {offsets} span {given:,} bytes, but {dtype} of shape {tuple(shape)} takes {needed:,}"
    return None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_places(
    path: Path, stored: dict[str, StoredTensor], data: int, size: int, report: Report, *, complete: bool
) -> None:
    """Tensors follow one another from the header to the end of the file; ``complete`` when all of them are known."""
    inside = {name: tensor for name, tensor in stored.items() if tensor.end <= size}
    for name, tensor in stored.items():
        if name not in inside:
            report(
                CheckpointError(
                    f"{name}: ends at byte {tensor.end:,}, but the file has {size:,}: {path} is truncated or not "
                    "safetensors"
                )
            )
    complete = complete and len(inside) == len(stored)
    last, reached = "its header", data
    for name, tensor in sorted(inside.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < reached:
            report(CheckpointError(f"{name}: overlaps {last} by {reached - tensor.begin:,} bytes in {path}"))
        elif tensor.begin > reached and complete:
            report(CheckpointError(f"{name}: {tensor.begin - reached:,} bytes before it in {path} are no tensor's"))
        last, reached = (name, tensor.end) if tensor.end >= reached else (last, reached)
    if reached < size and complete:
        report(
            CheckpointError(
                f"{path} is truncated or not safetensors: {size - reached:,} bytes follow the end of {last}"
            )
        )
