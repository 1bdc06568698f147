"""Checkpoints: a directory each, whole or absent, never pickled.

    checkpoints/step-00000400/config.json            the Hugging Face configuration
                              model.safetensors      weights under the module's names, experts stacked
                              optimizer.safetensors  optimiser state, and the random generator's
                              trainer.json           step, tokens, seconds, place in the data, the recipe
                              tokenizer/             the Hugging Face tokenizer with its chat template
    last -> checkpoints/step-00000400

A checkpoint is written under a temporary name and renamed when it is on disk, so a run killed at any moment leaves
the checkpoints it had.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trillion_convert.tensor_files import TensorFiles
from trillion_model.errors import CheckpointError
from trillion_training.config import Recipe
from trillion_training.data.stream import StreamPosition
from trillion_training.errors import StateError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RANDOM = "random_state"
LAST = "last"
_FOLDER = "checkpoints"


class Progress(BaseModel):
    """Where a run is; the content of ``trainer.json``."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    recipe: Recipe
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    position: StreamPosition = StreamPosition()


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read, its model aside."""

    progress: Progress
    optimizer: dict[str, torch.Tensor]
    random_state: torch.Tensor


def save(
    run: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    optimizer: dict[str, torch.Tensor],
    progress: Progress,
) -> Path:
    """Write a checkpoint into a run's directory and point ``last`` at it; returns the checkpoint."""
    folder = run / _FOLDER
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.to_json_file(partial / "config.json")
    tokenizer.save_pretrained(partial / "tokenizer")
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    save_file(
        {name: t.contiguous() for name, t in optimizer.items()} | {RANDOM: torch.get_rng_state()},
        partial / "optimizer.safetensors",
    )
    (partial / "trainer.json").write_text(progress.model_dump_json(indent=2), encoding="utf-8")
    for file in partial.rglob("*"):
        if file.is_file():
            _flush(file)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _flush(folder)
    _point(run / LAST, final)
    return final


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what killed runs left half written."""
    folder = run / _FOLDER
    for leftover in folder.glob("*.partial"):
        shutil.rmtree(leftover)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def find(path: Path) -> Path:
    """The checkpoint that ``path`` means: itself, or the last of a run's directory.

    Raises:
        StateError: there is none.
    """
    for candidate in (path, path / LAST):
        if (candidate / "trainer.json").is_file():
            return candidate.resolve()
    raise StateError(f"{path} is no checkpoint and no run with one: expected trainer.json in it, or in its '{LAST}'")


def load(checkpoint: Path) -> Saved:
    """Read everything but the model.

    Raises:
        StateError: a file is missing or damaged.
    """
    try:
        progress = Progress.model_validate_json((checkpoint / "trainer.json").read_text(encoding="utf-8"))
        tensors = load_file(checkpoint / "optimizer.safetensors")
        return Saved(progress, tensors, tensors.pop(RANDOM))
    except (OSError, ValidationError, SafetensorError, KeyError) as error:
        raise StateError(f"checkpoint {checkpoint} cannot be read: {error}") from error


def load_model(checkpoint: Path) -> Any:
    """Build the model of a checkpoint, in float32, with its weights.

    Raises:
        StateError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    import trillion_model

    trillion_model.register()
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        weights = TensorFiles(checkpoint)
        model.load_state_dict({name: weights.read(name) for name in weights})
    except (OSError, CheckpointError, RuntimeError) as error:
        raise StateError(f"checkpoint {checkpoint} cannot be read: {error}") from error
    return model


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Read a tokenizer from its directory, or from the ``tokenizer`` in a checkpoint or run.

    Raises:
        StateError: there is none.
    """
    from transformers import AutoTokenizer

    for candidate in (folder, folder / "tokenizer", folder / LAST / "tokenizer"):
        if (candidate / "tokenizer.json").is_file():
            return AutoTokenizer.from_pretrained(candidate)
    raise StateError(f"{folder} holds no tokenizer: expected tokenizer.json; make one with trillion-train tokenizer")


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent))
    os.replace(temporary, link)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
