"""A checkpoint opened for reading: its tensors held against what its configuration calls for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from trillion_convert import megatron
from trillion_convert.forms import FORMS, Form
from trillion_convert.quantize.recipe import Recipe
from trillion_convert.rank_files import open_tensors
from trillion_convert.safetensors_header import Report, refuse
from trillion_convert.tensor_files import DTYPES, QUANTIZED_DTYPES, TensorFiles
from trillion_model.architecture import Architecture, read_config
from trillion_model.errors import CheckpointError
from trillion_model.layout import Shape

_NAMED = 5


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose headers are known to fit its configuration. Make one with :func:`open_checkpoint`.

    ``recipe`` says how it is quantised; None where it is not.
    """

    directory: Path
    form: Form
    architecture: Architecture
    tensors: TensorFiles
    recipe: Recipe | None = None

    @property
    def tokenizer_directory(self) -> Path:
        """Where the tokenizer's files lie."""
        return self.directory / FORMS[self.form].tokenizer

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        end = self.architecture.config.eos_token_id
        return end if isinstance(end, list) else [end]

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


def open_checkpoint(path: Path, form: Form | None = None, report: Report = refuse) -> Checkpoint:
    """Open a directory and hold every tensor's name and shape against its configuration.

    Args:
        path: the directory, or a training run's.
        form: what to expect; detected when None (a training checkpoint has a ``trainer.json``, Megatron-Core's has its
            names).
        report: told of whatever is wrong with a tensor; where it returns, the rest is looked at.

    Raises:
        CheckpointError: a file cannot be read, or whatever ``report`` raises it for: tensors are missing, unknown
            or mis-shaped.
        ConfigError: the configuration is wrong.
    """
    directory, detected = find(path)
    architecture = Architecture.of(read_config(directory))
    recipe = Recipe.of(architecture.config)
    tensors = open_tensors(directory, report, DTYPES if recipe is None else DTYPES | QUANTIZED_DTYPES)
    if form is None and detected is Form.HF and megatron.EMBEDDING in tensors.names:
        form = Form.MEGATRON_STACKED if megatron.is_stacked(tensors.names) else Form.MEGATRON
    form = form or detected
    expected = FORMS[form].shapes(architecture)
    if recipe is not None:
        expected = recipe.stored_shapes(expected)
    _hold_against(expected, tensors, report)
    return Checkpoint(directory, form, architecture, tensors, recipe)


def _hold_against(expected: Mapping[str, Shape], tensors: TensorFiles, report: Report) -> None:
    directory, names = tensors.directory, tensors.names
    if missing := [name for name in expected if name not in names]:
        report(CheckpointError(f"{directory} lacks {listing(missing)}, which its configuration calls for"))
    if unknown := [name for name in names if name not in expected]:
        report(CheckpointError(f"{directory} has {listing(unknown)}, which no part of the architecture reads"))
    for name, info in tensors.items():
        if name in expected and info.shape != tuple(expected[name]):
            report(
                CheckpointError(f"{name}: shape is {info.shape}, but the configuration gives {tuple(expected[name])}")
            )


def listing(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(list(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more tensors"
