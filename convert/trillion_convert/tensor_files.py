"""Reading a directory's safetensors: lazily, mapped into memory, every name, shape and dtype known up front."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from trillion_convert.safetensors_header import ITEM_BYTES, Header, Report, StoredTensor, read_header, refuse
from trillion_model.errors import CheckpointError
from trillion_model.json_files import read_object

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtypes that weights may be stored in: safetensors' name and torch's."""
QUANTIZED_DTYPES = {"F8_E4M3": "float8_e4m3fn", "I8": "int8", "I32": "int32", "I64": "int64"}
"""Dtypes that quantised weights, and what describes them, may be stored in beside those."""

NUMBER_BYTES = {dtype: ITEM_BYTES[name] for name, dtype in (DTYPES | QUANTIZED_DTYPES).items()}
"""Bytes of a number in each of them."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor; ``dtype`` is torch's name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes."""
        return prod(self.shape) * NUMBER_BYTES[self.dtype]


class TensorFiles(Mapping[str, TensorInfo]):
    """The tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` lists.

    Opening reads headers only; :meth:`read` maps a tensor without copying it.

    Args:
        directory: where the files are.
        report: told of whatever is wrong with a tensor; such a tensor is left out when this returns.
        dtypes: what tensors may be stored in, as :data:`DTYPES`.

    Raises:
        CheckpointError: there are none, the index cannot be read, or whatever ``report`` raises it for: a file is
            truncated or malformed, the index leaves the directory or disagrees with the shards, or a tensor is
            stored twice or in a dtype that weights cannot have.
    """

    def __init__(self, directory: Path, report: Report = refuse, dtypes: Mapping[str, str] = DTYPES) -> None:
        self.directory = directory
        index = self._index(report)
        self._file_of: dict[str, str] = {}
        self._stored: dict[str, StoredTensor] = {}
        self._infos: dict[str, TensorInfo] = {}
        self._lost: set[str] = set()
        self._handles: dict[str, Any] = {}
        self._raw: dict[str, FileIO] = {}
        self._opening = Lock()
        for file in [WEIGHTS] if index is None else dict.fromkeys(index.file_of.values()):
            header = _header(directory, file, report)
            if header is None:
                self._lost |= {name for name, place in index.file_of.items() if place == file} if index else set()
                continue
            for name in (*header.tensors, *header.unsound):
                if name in self._file_of:
                    report(CheckpointError(f"{name}: stored twice, in {self._file_of[name]} and in {file}"))
                    continue
                self._file_of[name] = file
                if name in header.tensors:
                    self._take(name, header.tensors[name], dtypes, report)
        if index:
            self._check_index(index, report)

    def _take(self, name: str, stored: StoredTensor, dtypes: Mapping[str, str], report: Report) -> None:
        self._stored[name] = stored
        if stored.dtype in dtypes:
            self._infos[name] = TensorInfo(stored.shape, dtypes[stored.dtype])
        else:
            report(CheckpointError(f"{name}: stored as {stored.dtype}, but weights are one of {', '.join(dtypes)}"))

    def _check_index(self, index: "Index", report: Report) -> None:
        for name, file in self._file_of.items():
            if name not in index.file_of:
                report(CheckpointError(f"{name}: stored in {file}, but {INDEX} does not list it"))
        for name, file in index.file_of.items():
            if self._file_of.get(name) != file and name not in self._lost:
                report(CheckpointError(f"{name}: {INDEX} says it is in {file}, but it is not"))
        nbytes = sum(stored.end - stored.begin for stored in self._stored.values())
        complete = len(self._stored) == len(self._file_of) and not self._lost
        if complete and index.total_size not in (None, nbytes):
            report(
                CheckpointError(
                    f"metadata.total_size in {self.directory / INDEX} is {index.total_size!r}, but the tensors take "
                    f"{nbytes} bytes"
                )
            )

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    @property
    def names(self) -> Collection[str]:
        """Every name that is stored, those of tensors with a problem too."""
        return dict.fromkeys((*self._file_of, *sorted(self._lost))).keys()

    @property
    def files(self) -> set[str]:
        """Names of the files that hold tensors."""
        return set(self._file_of.values())

    def read(self, name: str) -> "torch.Tensor":
        """A tensor backed by the file, read as it is used."""
        file = self._file_of[name]
        if file not in self._handles:
            self._handles[file] = _open(self.directory / file)
        return self._handles[file].get_tensor(name)

    def read_range(self, name: str, start: int, stop: int) -> "torch.Tensor":
        """Numbers ``start`` to ``stop`` of a tensor laid out flat, in memory of their own; for any thread.

        Raises:
            CheckpointError: the file has become shorter.
        """
        import torch

        numbers = torch.empty(stop - start, dtype=getattr(torch, self._infos[name].dtype))
        stored = self._stored[name]
        self._fill(numbers, name, self._file_of[name], stored.begin + start * numbers.itemsize)
        return numbers

    def _fill(self, numbers: "torch.Tensor", name: str, file: str, offset: int) -> None:
        """Read a file's bytes from ``offset`` into all of a contiguous tensor."""
        import torch

        room = numbers.view(-1).view(torch.uint8).numpy().data
        while room:
            count = os.preadv(self._descriptor(file), [room], offset)
            if not count:
                raise CheckpointError(f"{name}: {file} became shorter while it was read")
            room, offset = room[count:], offset + count

    def _descriptor(self, file: str) -> int:
        with self._opening:
            if file not in self._raw:
                self._raw[file] = (self.directory / file).open("rb", buffering=0)
                os.posix_fadvise(self._raw[file].fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            return self._raw[file].fileno()

    def pieces(self, name: str, numbers: int = 2**22) -> "Iterator[torch.Tensor]":
        """A tensor in flat pieces of at most so many ``numbers``, read without mapping, so that memory is bounded."""
        total = prod(self._infos[name].shape)
        for start in range(0, total, numbers):
            yield self.read_range(name, start, min(start + numbers, total))

    def _index(self, report: Report) -> "Index | None":
        """The index; None where a single file stands without one."""
        whole, index = self.directory / WEIGHTS, self.directory / INDEX
        if whole.exists() and index.exists():
            raise CheckpointError(f"{self.directory} holds both {WEIGHTS} and {INDEX}; keep the one that is meant")
        if index.exists():
            return read_index(index, report)
        if not whole.exists():
            self._refuse_absence()
        return None

    def _refuse_absence(self) -> None:
        if not self.directory.is_dir():
            raise CheckpointError(f"{self.directory} is not a directory")
        pickles = sorted(file.name for file in self.directory.iterdir() if file.suffix in _PICKLES)
        if pickles:
            raise CheckpointError(
                f"{self.directory} holds pickle files only ({', '.join(pickles[:3])}), which can run code when they "
                f"are read; save it as safetensors first"
            )
        if any(self.directory.glob("*.distcp")):
            raise CheckpointError(
                f"{self.directory} holds .distcp files, whose .metadata is a pickle and can run code when it is read; "
                "save its tensors as safetensors under the same names first"
            )
        raise CheckpointError(f"{self.directory} holds no weights: expected {WEIGHTS} or {INDEX}")


def all_finite(tensor: "torch.Tensor") -> bool:
    """Whether no number is infinite or nan: both show in the extremes, which take no memory to find."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()  # torch finds no extremes of FP8
    return all(extreme.isfinite().item() for extreme in tensor.aminmax())


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not safetensors: {error}") from error


def _header(directory: Path, file: str, report: Report) -> Header | None:
    """The header of a shard; None where there is none to read, which was reported."""
    try:
        path = _inside(directory, file)
        if not path.exists():
            raise CheckpointError(f"{path} is missing, but {INDEX} lists it")
        return read_header(path, report)
    except CheckpointError as error:
        report(error)
    except OSError as error:
        report(CheckpointError(f"{directory / file} cannot be read: {error.strerror}"))
    return None


def _inside(directory: Path, file: str) -> Path:
    """A file of the directory. It may be a link into the directory, or into the blobs of a hub cache around it."""
    path, home = directory / file, directory.resolve()
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link that leads to itself or to nothing; put the file itself there")
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(path.resolve().is_relative_to(allowed) for allowed in homes):
        raise CheckpointError(f"{path} is a link to {path.resolve()}, outside the directory; put the file itself there")
    return path


@dataclass(frozen=True)
class Index:
    """``model.safetensors.index.json``.

    Attributes:
        file_of: every tensor's shard.
        total_size: bytes of all tensors, as stated; None where it is not.
    """

    file_of: dict[str, str]
    total_size: Any


def read_index(path: Path, report: Report = refuse) -> Index:
    """Read an index. Shards are files beside it; what is not is reported and left out.

    Raises:
        CheckpointError: it is no JSON, or has no map, or whatever ``report`` raises it for.
    """
    fields = read_object(path)
    weight_map, metadata = fields.get("weight_map"), fields.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map, an object of tensor names and file names")
    file_of = {}
    for name, file in weight_map.items():
        # A shard lies beside its index: anything with a folder in it could read files that are none of ours.
        if not isinstance(file, str) or "\\" in file or "\0" in file or Path(file).name != file:
            report(CheckpointError(f"{name}: {path.name} gives the file {file!r}, but shards lie beside the index"))
        elif not file.endswith(".safetensors"):
            report(CheckpointError(f"{name}: {path.name} gives the file {file!r}, but only safetensors are read"))
        else:
            file_of[name] = file
    return Index(file_of, metadata.get("total_size") if isinstance(metadata, dict) else None)
