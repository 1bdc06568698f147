"""From a training checkpoint to a Hugging Face directory in the published names, or to Megatron-Core's, and back."""

from pathlib import Path

from trillion_convert.checkpoint import Form, find, open_checkpoint
from trillion_convert.conversion import PublishedReader, outputs
from trillion_convert.dtypes import commonest, published_dtypes
from trillion_convert.errors import ConvertError
from trillion_convert.remote_code import check_ours
from trillion_convert.small_files import SmallFiles
from trillion_convert.streaming import Conversion, Listener, Report, stream
from trillion_convert.tokenizer import check_tokenizer

DEFAULT_SHARD = "5GB"


def export(
    source: Path,
    target: Path,
    *,
    to: Form = Form.HF,
    dtype: str | None = None,
    max_shard_size: str = DEFAULT_SHARD,
    remote_code: bool = False,
    force: bool = False,
    listener: Listener | None = None,
) -> Report:
    """Write a published directory from a training checkpoint; it appears whole or not at all.

    Args:
        source: a training checkpoint, or a run's directory, whose last checkpoint is taken; for another form than the
            published one, a published directory too.
        target: the directory to make.
        to: the form to write.
        dtype: "float32", "bfloat16" or "float16"; None keeps what each tensor has.
        max_shard_size: most bytes of a weight file, such as "5GB"; a larger tensor has a file of its own.
        remote_code: put modelling files beside the weights, for Transformers without our package.
        force: replace an earlier export.
        listener: whom to tell of progress.

    Raises:
        CheckpointError: the source is damaged, or does not fit its configuration or its tokenizer.
        TargetError: the target is in use, or the disk is too small.
        ConvertError: ``max_shard_size`` is no size, or there is no code to bundle.
    """
    return convert(
        "export",
        source,
        target,
        (Form.TRAIN if to is Form.HF else None, to),
        dtype=dtype,
        max_shard_size=max_shard_size,
        remote_code=remote_code,
        force=force,
        listener=listener,
    )


def import_checkpoint(
    source: Path,
    target: Path,
    *,
    source_form: Form = Form.HF,
    to: Form = Form.TRAIN,
    dtype: str | None = None,
    max_shard_size: str = DEFAULT_SHARD,
    force: bool = False,
    listener: Listener | None = None,
) -> Report:
    """Write a training checkpoint from a published directory: :func:`export` the other way, with the same arguments.

    The checkpoint has weights to start from, and no optimiser's state to resume. ``source_form`` may be one of
    Megatron-Core's, and ``to`` the published form.
    """
    return convert(
        "import",
        source,
        target,
        (source_form, to),
        dtype=dtype,
        max_shard_size=max_shard_size,
        force=force,
        listener=listener,
    )


def convert(
    command: str,
    source: Path,
    target: Path,
    forms: tuple[Form | None, Form],
    *,
    dtype: str | None = None,
    max_shard_size: str = DEFAULT_SHARD,
    remote_code: bool = False,
    force: bool = False,
    listener: Listener | None = None,
) -> Report:
    """Write ``target`` in the second of two ``forms`` from ``source`` in the first, or in any where that is None.

    Other arguments are as for :func:`export`.
    """
    source_form, target_form = forms
    if source_form is Form.TRAIN:
        _check_trained(source)
    checkpoint = open_checkpoint(source, source_form)
    if checkpoint.recipe is not None:
        raise ConvertError(f"{checkpoint.directory} is quantised; {command} the checkpoint that it was made of")
    tokenizer = check_tokenizer(checkpoint)
    architecture = checkpoint.architecture.published_form()
    if remote_code:
        check_ours(architecture)
    dtypes = published_dtypes(PublishedReader(checkpoint), architecture, dtype)
    made = outputs(checkpoint, target_form, architecture, dtypes)
    small = SmallFiles(checkpoint, tokenizer, architecture, commonest(made), target.name, remote_code)
    return stream(
        Conversion(command, made, {"remote_code": remote_code}, [checkpoint.directory]),
        target,
        finish=lambda folder: small.write(target_form, folder),
        max_shard_size=max_shard_size,
        force=force,
        listener=listener,
    )


def _check_trained(source: Path) -> None:
    """Refuse a directory that is in another form than a training checkpoint's."""
    if find(source)[1] is Form.TRAIN:
        return
    form = open_checkpoint(source).form
    rewrite = f"trillion-convert import {source} TARGET --from {form} --to {Form.HF}"
    what = f"is in {Form.HF} form already" if form is Form.HF else f"is in {form} form"
    raise ConvertError(
        f"{source} {what}, and not a training checkpoint (it has no trainer.json); to write it anew, in another dtype "
        f"or shards of another size: {rewrite}"
    )
