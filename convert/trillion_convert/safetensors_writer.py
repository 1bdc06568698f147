"""Writing safetensors from end to end in small pieces, so that a file may be larger than memory.

The format: eight bytes of header length, a JSON header of names, dtypes, shapes and offsets, then the tensors.
"""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trillion_convert.manifest import FileEntry
from trillion_convert.tensor_files import DTYPES, QUANTIZED_DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

_NAMES = {dtype: name for name, dtype in (DTYPES | QUANTIZED_DTYPES).items()}
_ALIGNMENT = 8


class SafetensorsWriter:
    """A file that is digested as it is written.

    Used as a context manager; :meth:`finish` says what was written.

    Args:
        path: the file.
        infos: its tensors, in the order in which their pieces will come.
    """

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo]) -> None:
        from blake3 import blake3

        self._file = path.open("wb", buffering=0)
        self._hasher = blake3()
        self._size = 0
        self._append(memoryview(header(infos)))

    def write(self, piece: "torch.Tensor") -> None:
        """Append a piece of a tensor."""
        import torch

        self._append(piece.contiguous().flatten().view(torch.uint8).numpy().data)

    def finish(self) -> FileEntry:
        """Wait until the file is on disk."""
        os.fsync(self._file.fileno())
        return FileEntry(size=self._size, digest=self._hasher.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _append(self, data: memoryview) -> None:
        self._hasher.update(data)
        self._size += len(data)
        while data:
            data = data[self._file.write(data) :]


def header(infos: Mapping[str, TensorInfo]) -> bytes:
    """What a file of these tensors begins with, padded so that numbers are aligned."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in infos.items():
        begin, end = end, end + info.nbytes
        fields[name] = {"dtype": _NAMES[info.dtype], "shape": info.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(fields, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    return struct.pack("<Q", len(encoded)) + encoded
