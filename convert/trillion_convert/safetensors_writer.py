"""Writing safetensors from end to end in small pieces, so that a file may be larger than memory.

The format: eight bytes of header length, a JSON header of names, dtypes, shapes and offsets, then the tensors.
"""

import json
import os
import struct
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trillion_convert.manifest import FileEntry
from trillion_convert.tensor_files import DTYPES, QUANTIZED_DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

_NAMES = {dtype: name for name, dtype in (DTYPES | QUANTIZED_DTYPES).items()}
_ALIGNMENT = 8
_FLUSH_EVERY = 128 * 2**20
_PENDING = 2


class SafetensorsWriter:
    """A file that is digested, written and flushed on threads of its own while the next piece is made.

    Used as a context manager; :meth:`finish` says what was written.

    Args:
        path: the file.
        infos: its tensors, in the order in which their pieces will come.
    """

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo]) -> None:
        from blake3 import blake3

        self._file = path.open("wb", buffering=0)
        self._hasher = blake3()
        self._size = self._flushed = 0
        self._pending: list[Future[None]] = []
        self._flush: Future[None] | None = None
        self._writing, self._flushing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._submit(memoryview(header(infos)))

    def write(self, piece: "torch.Tensor") -> None:
        """Append a piece of a tensor; waits while two are on their way. The piece must not change any more.

        Raises:
            OSError: an earlier piece could not be written.
        """
        import torch

        self._submit(piece.contiguous().flatten().view(torch.uint8).numpy().data)

    def drain(self) -> None:
        """Wait until every piece is written and none is held any longer."""
        while self._pending:
            self._pending.pop(0).result()

    def finish(self) -> FileEntry:
        """Wait until the file is on disk."""
        self.drain()
        os.fsync(self._file.fileno())
        return FileEntry(size=self._size, digest=self._hasher.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writing.shutdown()
        self._flushing.shutdown()
        self._file.close()

    def _submit(self, data: memoryview) -> None:
        if len(self._pending) >= _PENDING:
            self._pending.pop(0).result()
        self._pending.append(self._writing.submit(self._write, data))

    def _write(self, data: memoryview) -> None:
        self._hasher.update(data)
        self._size += len(data)
        while data:
            data = data[self._file.write(data) :]
        # Left to the end, all flushing would be waited for; begun early, it goes on beside reading.
        if self._size - self._flushed >= _FLUSH_EVERY and (self._flush is None or self._flush.done()):
            self._flushed = self._size
            self._flush = self._flushing.submit(os.fdatasync, self._file.fileno())


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
