"""A checkpoint's tokenizer: held against its configuration, and copied as it stands."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint
from trillion_model.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUFFIXES = (".json", ".model", ".jinja", ".txt")


def check_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """Read a checkpoint's tokenizer.

    Raises:
        CheckpointError: there is none, it is damaged, it has ids that the model has no embedding for, or its end
            token is not the model's.
    """
    from transformers import AutoTokenizer

    folder, config = checkpoint.tokenizer_directory, checkpoint.architecture.config
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{folder} holds no tokenizer: expected tokenizer.json or tokenizer.model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
        size = len(tokenizer)
    except Exception as error:  # the tokenizer library raises bare Exception on a damaged file
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if size > config.vocab_size:
        raise CheckpointError(f"{folder} has {size} tokens, but vocab_size in config.json is {config.vocab_size}")
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if tokenizer.eos_token_id not in ends:
        raise CheckpointError(
            f"eos_token_id is {config.eos_token_id} in config.json, but the tokenizer in {folder} has "
            f"{tokenizer.eos_token_id} ({tokenizer.eos_token}); make them agree"
        )
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's own files."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _SUFFIXES:
            shutil.copyfile(file, target / file.name)
