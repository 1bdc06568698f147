"""A checkpoint's tokenizer and chat template: held against its configuration, and copied as they stand."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint
from trillion_convert.manifest import MANIFEST
from trillion_convert.safetensors_header import Report, refuse
from trillion_convert.tensor_files import INDEX
from trillion_model.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUFFIXES = (".json", ".model", ".jinja", ".txt")
_OF_THE_MODEL = ("config.json", "generation_config.json", "trainer.json", INDEX, MANIFEST)
_QUESTION = [{"role": "user", "content": "?"}]


def check_tokenizer(checkpoint: Checkpoint, report: Report = refuse) -> "PreTrainedTokenizerBase":
    """Read a checkpoint's tokenizer.

    Raises:
        CheckpointError: there is none, or it is damaged, or whatever ``report`` raises it for: it has ids that the
            model has no embedding for, its special tokens are not the model's, or its chat template fails.
    """
    from transformers import AutoTokenizer

    folder, config = checkpoint.tokenizer_directory, checkpoint.architecture.config
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{folder} holds no tokenizer: expected tokenizer.json or tokenizer.model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
        size = max(len(tokenizer), *(1 + index for index in tokenizer.get_vocab().values()))
    except Exception as error:  # the tokenizer library raises bare Exception on a damaged file
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if size > config.vocab_size:
        report(CheckpointError(f"{folder} has {size} tokens, but vocab_size in config.json is {config.vocab_size}"))
    _check_special_tokens(tokenizer, checkpoint, report)
    if tokenizer.chat_template is not None:
        try:
            tokenizer.apply_chat_template(_QUESTION, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template may raise anything
            report(CheckpointError(f"chat_template in {folder} fails on a user's turn: {error}"))
    return tokenizer


def _check_special_tokens(tokenizer: "PreTrainedTokenizerBase", checkpoint: Checkpoint, report: Report) -> None:
    """The end token must be one of the model's; begin and padding too, where both sides have one."""
    config = checkpoint.architecture.config
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        stated, found = getattr(config, field), getattr(tokenizer, field)
        optional = field != "eos_token_id"
        if found in (stated if isinstance(stated, list) else [stated]) or (optional and None in (stated, found)):
            continue
        token = getattr(tokenizer, field.removesuffix("_id"))
        report(
            CheckpointError(
                f"{field} is {stated} in config.json, but the tokenizer in {checkpoint.tokenizer_directory} has "
                f"{found} ({token}); make them agree"
            )
        )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's own files, which may lie among a model's."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _SUFFIXES and file.name not in _OF_THE_MODEL:
            shutil.copyfile(file, target / file.name)
