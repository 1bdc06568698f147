"""Everything that can be checked of a checkpoint without running it."""

from pathlib import Path

from trillion_convert.checkpoint import Checkpoint, Form, open_checkpoint
from trillion_convert.tensor_files import all_finite
from trillion_convert.tokenizer import check_tokenizer
from trillion_model.errors import CheckpointError


def validate(path: Path, form: Form | None = None) -> Checkpoint:
    """Open a checkpoint and check what its headers cannot tell: every number is finite, the tokenizer fits.

    Raises:
        CheckpointError: something does not fit; the message names it.
        ConfigError: the configuration is wrong.
    """
    checkpoint = open_checkpoint(path, form)
    check_tokenizer(checkpoint)
    config = checkpoint.architecture.config
    stated = str(config.dtype).removeprefix("torch.") if config.dtype else None
    if checkpoint.form is Form.HF:
        if stated not in checkpoint.dtypes:
            raise CheckpointError(
                f"dtype in config.json is {stated}, but tensors are {' and '.join(checkpoint.dtypes)}"
            )
        if config.architectures != [checkpoint.architecture.class_name]:
            raise CheckpointError(
                f"architectures in config.json is {config.architectures}, but must be "
                f"[{checkpoint.architecture.class_name!r}]"
            )
    for name in checkpoint.tensors:
        if not all_finite(checkpoint.tensors.read(name)):
            raise CheckpointError(f"{name}: holds numbers that are infinite or none at all")
    return checkpoint
