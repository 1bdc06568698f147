"""A checkpoint opened for reading: its tensors held against what its configuration calls for."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trillion_convert.tensor_files import TensorFiles
from trillion_model.architecture import Architecture, read_config
from trillion_model.errors import CheckpointError

_NAMED = 5


class Form(StrEnum):
    """How a directory's tensors are named."""

    TRAIN = "train"
    """As the modules name them, experts stacked; written by trillion-train."""
    HF = "hf"
    """As checkpoints are published, experts one by one."""


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose headers are known to fit its configuration. Make one with :func:`open_checkpoint`."""

    directory: Path
    form: Form
    architecture: Architecture
    tensors: TensorFiles

    @property
    def tokenizer_directory(self) -> Path:
        """Where the tokenizer's files lie."""
        return self.directory / "tokenizer" if self.form is Form.TRAIN else self.directory

    @property
    def dtypes(self) -> list[str]:
        """The dtypes that tensors are stored in, sorted."""
        return sorted({info.dtype for info in self.tensors.values()})

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of weights by the dtype that they are stored in."""
        return {
            dtype: sum(info.nbytes for info in self.tensors.values() if info.dtype == dtype) for dtype in self.dtypes
        }


def find(path: Path) -> tuple[Path, Form]:
    """The checkpoint that ``path`` means, itself or the last of a training run's directory, and its form."""
    for candidate in (path, path / "last"):
        if (candidate / "trainer.json").is_file():
            return candidate, Form.TRAIN
    return path, Form.HF


def open_checkpoint(path: Path, form: Form | None = None) -> Checkpoint:
    """Open a directory and hold every tensor's name and shape against its configuration.

    Args:
        path: the directory, or a training run's.
        form: what to expect; detected when None (a training checkpoint has a ``trainer.json``).

    Raises:
        CheckpointError: a file cannot be read, or tensors are missing, unknown or mis-shaped.
        ConfigError: the configuration is wrong.
    """
    directory, detected = find(path)
    form = form or detected
    architecture = Architecture.of(read_config(directory))
    tensors = TensorFiles(directory)
    expected = architecture.module_shapes if form is Form.TRAIN else architecture.published_shapes()
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"{directory} lacks {_listing(missing)}, which its configuration calls for")
    if unknown := [name for name in tensors if name not in expected]:
        raise CheckpointError(f"{directory} has {_listing(unknown)}, which no part of the architecture reads")
    for name, shape in expected.items():
        if tensors[name].shape != tuple(shape):
            raise CheckpointError(f"{name}: shape is {tensors[name].shape}, but the configuration gives {tuple(shape)}")
    return Checkpoint(directory, form, architecture, tensors)


def _listing(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more tensors"
