"""Reading a directory's safetensors: lazily, mapped into memory, every name, shape and dtype known up front."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trillion_model.errors import CheckpointError
from trillion_model.sizes import BYTES

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtypes that weights may be stored in: safetensors' name and torch's."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor; ``dtype`` is torch's name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes."""
        return prod(self.shape) * BYTES[self.dtype]


class TensorFiles(Mapping[str, TensorInfo]):
    """The tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` lists.

    Opening reads headers only; :meth:`read` maps a tensor without copying it.

    Args:
        directory: where the files are.

    Raises:
        CheckpointError: there are none, one is truncated or malformed, the index leaves the directory or disagrees
            with the shards, or a tensor is stored twice or in a dtype that weights cannot have.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        listed = self._listed()
        self._files = {file: _open(directory / file) for file in ([WEIGHTS] if listed is None else _unique(listed))}
        self._file_of: dict[str, str] = {}
        for file, handle in self._files.items():
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                if name in self._file_of:
                    raise CheckpointError(f"{name}: stored twice, in {self._file_of[name]} and in {file}")
                if listed is not None and name not in listed:
                    raise CheckpointError(f"{name}: stored in {file}, but {INDEX} does not list it")
                self._file_of[name] = file
        for name, file in (listed or {}).items():
            if self._file_of.get(name) != file:
                raise CheckpointError(f"{name}: {INDEX} says it is in {file}, but it is not")
        self._infos = {name: self._info(name) for name in self._file_of}

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def read(self, name: str) -> "torch.Tensor":
        """A tensor backed by the file, read as it is used."""
        return self._files[self._file_of[name]].get_tensor(name)

    def _info(self, name: str) -> TensorInfo:
        header = self._files[self._file_of[name]].get_slice(name)
        dtype = header.get_dtype()
        if dtype not in DTYPES:
            raise CheckpointError(f"{name}: stored as {dtype}, but weights are one of {', '.join(DTYPES)}")
        return TensorInfo(tuple(header.get_shape()), DTYPES[dtype])

    def _listed(self) -> dict[str, str] | None:
        """The index's map of tensors to shards; None where a single file stands without one."""
        whole, index = self.directory / WEIGHTS, self.directory / INDEX
        if whole.is_file() and index.is_file():
            raise CheckpointError(f"{self.directory} holds both {WEIGHTS} and {INDEX}; keep the one that is meant")
        if index.is_file():
            return _read_index(index)
        if not whole.is_file():
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
        raise CheckpointError(f"{self.directory} holds no weights: expected {WEIGHTS} or {INDEX}")


def all_finite(tensor: "torch.Tensor") -> bool:
    """Whether no number is infinite or nan: both show in the extremes, which take no memory to find."""
    return all(extreme.isfinite().item() for extreme in tensor.aminmax())


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing, but {INDEX} lists it") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not safetensors: {error}") from error


def _unique(listed: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(listed.values()))


def _read_index(path: Path) -> dict[str, str]:
    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{repeated}: listed twice in {path}")
        return fields

    try:
        index = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_repeats)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map, an object of tensor names and file names")
    for name, file in weight_map.items():
        # A shard lies beside its index: anything with a folder in it could read files that are none of ours.
        if not isinstance(file, str) or "\\" in file or Path(file).name != file:
            raise CheckpointError(f"{name}: {path.name} gives the file {file!r}, but shards lie beside the index")
        if not file.endswith(".safetensors"):
            raise CheckpointError(f"{name}: {path.name} gives the file {file!r}, but only safetensors are read")
    return weight_map
