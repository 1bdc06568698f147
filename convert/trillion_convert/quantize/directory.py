"""From a published directory to a quantised one, a tensor at a time, with what it costs."""

import gc
import json
import math
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint, open_checkpoint
from trillion_convert.errors import ConvertError
from trillion_convert.forms import Form
from trillion_convert.manifest import MANIFEST
from trillion_convert.quantize.loss import Loss, measure, read_pieces
from trillion_convert.quantize.recipe import Recipe, is_quantized, kept_modules, quantization_config
from trillion_convert.quantize.weights import held_bytes, quantize_stored
from trillion_convert.streaming import Conversion, Listener, Output, Report, computed, stream
from trillion_convert.tensor_files import INDEX
from trillion_convert.tokenizer import check_tokenizer

if TYPE_CHECKING:
    import torch

_SMALL_FILES = (".json", ".model", ".jinja", ".txt", ".md", ".py")


@dataclass
class WeightErrors:
    """By how much weights changed: the norm of the difference over the norm of the weight, for each of them."""

    of: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, name: str, error: float) -> None:
        """Note a weight's, from any thread."""
        with self._lock:
            self.of[name] = error

    @property
    def mean(self) -> float:
        """Root of the mean of the squares."""
        return math.sqrt(sum(error**2 for error in self.of.values()) / len(self.of))

    @property
    def worst(self) -> tuple[str, float]:
        """The weight that changed most, and by how much."""
        return max(self.of.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class QuantizeReport:
    """What was written and what it costs.

    Attributes:
        written: tensors, files and bytes of weights.
        source_bytes: bytes of weights before.
        quantized, kept: number of published tensors that were quantised, and that were not.
        errors: of the weights that this run quantised; one that went on from a killed run did not see them all.
        before, after: the loss on the text; None where no text was given.
    """

    written: Report
    source_bytes: int
    quantized: int
    kept: int
    errors: WeightErrors
    before: Loss | None
    after: Loss | None


def quantize(
    source: Path,
    target: Path,
    recipe: Recipe,
    *,
    text: Path | None = None,
    max_shard_size: str = "5GB",
    force: bool = False,
    listener: Listener | None = None,
) -> QuantizeReport:
    """Write ``target`` from the published directory ``source``; it appears whole or not at all.

    Args:
        source: a published directory, as ``trillion-convert export`` writes it.
        target: the directory to make.
        recipe: how to quantise.
        text: what the loss is measured on, before and after; this loads the whole model in float32, twice, once the
            target is written.
        max_shard_size: most bytes of a weight file, such as "5GB"; a larger tensor has a file of its own.
        force: replace a ``target`` that is a model directory.
        listener: whom to tell of progress.

    Raises:
        CheckpointError: the source is damaged, or does not fit its configuration or its tokenizer.
        ConvertError: it is no published directory, is quantised already, or its rows do not fit the group size.
        PromptError: the text cannot be read.
        TargetError: the target is in use, or the disk is too small.
    """
    checkpoint = _open(source)
    tokenizer = check_tokenizer(checkpoint)
    context = checkpoint.architecture.config.max_position_embeddings
    pieces = None if text is None else read_pieces(text, tokenizer, context)
    outputs, errors = _outputs(checkpoint, recipe)
    written = stream(
        Conversion("quantize", outputs, {"scheme": recipe.scheme, "group": recipe.group_size}, [checkpoint.directory]),
        target,
        finish=lambda folder: _write_small_files(folder, checkpoint, recipe),
        max_shard_size=max_shard_size,
        force=force,
        listener=listener,
    )
    published = checkpoint.architecture.published_shapes()
    quantized = sum(is_quantized(name, shape) for name, shape in published.items())
    return QuantizeReport(
        written,
        sum(checkpoint.stored_bytes().values()),
        quantized,
        len(published) - quantized,
        errors,
        None if pieces is None else _loss(checkpoint, pieces),
        None if pieces is None else _loss(open_checkpoint(target, Form.HF), pieces),
    )


def _open(source: Path) -> Checkpoint:
    checkpoint = open_checkpoint(source)
    if checkpoint.form is not Form.HF:
        raise ConvertError(
            f"{checkpoint.directory} has the form {checkpoint.form}; write it as a published directory first, with "
            "trillion-convert export or import, and quantise that"
        )
    if checkpoint.recipe is not None:
        raise ConvertError(f"{checkpoint.directory} is quantised already, as {checkpoint.recipe.scheme}")
    return checkpoint


def _outputs(checkpoint: Checkpoint, recipe: Recipe) -> tuple[dict[str, Output], WeightErrors]:
    errors = WeightErrors()
    recipe.check({name: info.shape for name, info in checkpoint.tensors.items()})
    outputs: dict[str, Output] = {}
    for name in checkpoint.architecture.published_shapes():
        info = checkpoint.tensors[name]
        if is_quantized(name, info.shape):
            stored = recipe.stored(name, info)
            produce = partial(_quantize, checkpoint, name, recipe, errors)
            outputs |= computed(stored, produce, held=held_bytes(info, stored))
        else:
            outputs[name] = Output(info, partial(checkpoint.tensors.pieces, name))
    return outputs, errors


def _quantize(checkpoint: Checkpoint, name: str, recipe: Recipe, errors: WeightErrors) -> "dict[str, torch.Tensor]":
    parts, error = quantize_stored(checkpoint.tensors, name, recipe)
    errors.note(name, error)
    return parts


def _loss(checkpoint: Checkpoint, pieces: Sequence[tuple[int, ...]]) -> Loss:
    from trillion_convert.verify.forms import RunForm, Target
    from trillion_convert.verify.run import load_runner

    runner = load_runner(Target(RunForm.HF, checkpoint.directory), checkpoint, "float32", longest=0)
    try:
        return measure(runner, pieces)
    finally:
        runner.close()
        gc.collect()


def _write_small_files(folder: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """The source's own, but for its configuration, which says how the weights are quantised."""
    for file in sorted(checkpoint.directory.iterdir()):
        if file.is_file() and file.suffix in _SMALL_FILES and file.name not in (INDEX, MANIFEST):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = kept_modules(checkpoint.architecture.published_shapes())
    config["quantization_config"] = quantization_config(recipe, kept)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
