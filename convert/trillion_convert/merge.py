"""The weighted mean of checkpoints of one architecture, tensor by tensor ("model soup")."""

from collections.abc import Iterator, Sequence
from functools import partial
from math import fsum, isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint, open_checkpoint
from trillion_convert.dtypes import commonest, stored_dtypes
from trillion_convert.errors import ConvertError
from trillion_convert.export import DEFAULT_SHARD
from trillion_convert.small_files import SmallFiles
from trillion_convert.streaming import PIECE, Conversion, Listener, Output, Report, stream
from trillion_convert.tensor_files import TensorFiles, TensorInfo
from trillion_convert.tokenizer import check_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_MAY_DIFFER = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "auto_map",
    "_name_or_path",
    "use_cache",
)


def merge(
    sources: Sequence[Path],
    target: Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: str | None = None,
    max_shard_size: str = DEFAULT_SHARD,
    force: bool = False,
    listener: Listener | None = None,
) -> Report:
    """Write the weighted mean of two or more checkpoints, in the form, with the tokenizer and card of the first.

    Args:
        sources: the checkpoints, of one form, architecture and tokenizer.
        target: the directory to make.
        weights: a number a checkpoint, which may be negative; they are divided by their sum. Equal when None.
        dtype: what to store; None keeps the first's. Sums are made in float32 and rounded once.
        max_shard_size, force, listener: as for :func:`trillion_convert.export.export`.

    Raises:
        CheckpointError: a source is damaged.
        ConvertError: there are fewer than two, weights do not fit, or they are not of one model.
        TargetError: the target is in use, or the disk is too small.
    """
    if len(sources) < 2:
        raise ConvertError("give two checkpoints or more, and the directory to make last")
    shares = _shares(weights, len(sources))
    checkpoints = [open_checkpoint(source) for source in sources]
    tokenizers = [check_tokenizer(checkpoint) for checkpoint in checkpoints]
    first = checkpoints[0]
    if first.recipe is not None:
        raise ConvertError(f"{first.directory} is quantised; merge the checkpoints that it was made of")
    for other, tokenizer in zip(checkpoints[1:], tokenizers[1:], strict=True):
        _check_same_model(first, other)
        _check_same_tokens(first, tokenizers[0], other, tokenizer)
    files = [checkpoint.tensors for checkpoint in checkpoints]
    dtypes = stored_dtypes(first, dtype)
    made = {}
    for name, info in first.tensors.items():
        kept = TensorInfo(info.shape, dtypes[name])
        made[name] = Output(kept, partial(_mean, files, shares, name, kept))
    small = SmallFiles(first, tokenizers[0], first.architecture, commonest(made), target.name)
    return stream(
        Conversion("merge", made, {"weights": shares}, [checkpoint.directory for checkpoint in checkpoints]),
        target,
        finish=lambda folder: small.write(first.form, folder),
        max_shard_size=max_shard_size,
        force=force,
        listener=listener,
    )


def _shares(weights: Sequence[float] | None, checkpoints: int) -> list[float]:
    weights = [1.0] * checkpoints if weights is None else weights
    if len(weights) != checkpoints:
        raise ConvertError(f"--weights has {len(weights)} number(s) for {checkpoints} checkpoints; give one for each")
    total = fsum(weights)
    if not all(map(isfinite, weights)) or not total > 0:
        raise ConvertError(f"--weights are {', '.join(map(str, weights))}, but their sum must be above 0")
    return [weight / total for weight in weights]


def _mean(
    files: Sequence[TensorFiles], shares: Sequence[float], name: str, info: TensorInfo
) -> "Iterator[torch.Tensor]":
    import torch

    numbers = prod(info.shape)
    step = PIECE // torch.float32.itemsize
    for start in range(0, numbers, step):
        stop = min(start + step, numbers)
        total = torch.zeros(stop - start, dtype=torch.float32)
        for tensors, share in zip(files, shares, strict=True):
            total.add_(tensors.read_range(name, start, stop).float(), alpha=share)
        yield total.to(getattr(torch, info.dtype))


def _check_same_model(first: Checkpoint, other: Checkpoint) -> None:
    if first.form is not other.form:
        raise ConvertError(
            f"{first.directory} is in {first.form} form and {other.directory} in {other.form} form; convert one of them"
        )
    if other.recipe is not None:
        raise ConvertError(f"{other.directory} is quantised; merge the checkpoints that it was made of")
    ours, theirs = (_meaning(checkpoint.architecture.config) for checkpoint in (first, other))
    for field in sorted(ours.keys() | theirs.keys(), key=lambda name: (name != "model_type", name)):
        if ours.get(field) != theirs.get(field):
            raise ConvertError(
                f"{field} is {ours.get(field)!r} in {first.directory} and {theirs.get(field)!r} in {other.directory}; "
                "only checkpoints of one architecture can be merged"
            )


def _meaning(config: "PreTrainedConfig") -> dict[str, object]:
    return {field: value for field, value in config.to_dict().items() if field not in _MAY_DIFFER}


def _check_same_tokens(
    first: Checkpoint, ours: "PreTrainedTokenizerBase", other: Checkpoint, theirs: "PreTrainedTokenizerBase"
) -> None:
    one, two = ours.get_vocab(), theirs.get_vocab()
    differing = sorted(token for token in one.keys() | two.keys() if one.get(token) != two.get(token))
    if differing:
        token = differing[0]
        raise ConvertError(
            f"{token!r} is token {one.get(token)} in {first.tokenizer_directory} and {two.get(token)} in "
            f"{other.tokenizer_directory} ({len(differing)} differ); only checkpoints of one tokenizer can be merged"
        )
