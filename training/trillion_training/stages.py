"""The two stages of a run, pre-training and supervised fine-tuning: what each starts from and learns."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trillion_training import checkpoint
from trillion_training.checkpoint import Progress
from trillion_training.config import Initial, Recipe
from trillion_training.data.encode import encode_chats, encode_text
from trillion_training.errors import StateError, TokenizerError
from trillion_training.loop import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Let denormal numbers, as AdamW's second moments have them, be zero: they slow a CPU down eight times and more.

    Worker threads take the setting over from the thread that starts them, so it comes before any arithmetic.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_denormals_flushed()
def pretrain(recipe: Recipe, shape: str, tokenizer_folder: Path, data: Path, out: Path) -> Path:
    """Train a new model on a text file; returns the last checkpoint.

    Args:
        recipe: how to train.
        shape: a preset's name, or a directory or hub id with a configuration; its weights are not read.
        tokenizer_folder: where the tokenizer is.
        data: a text file.
        out: the run's directory.

    Raises:
        TrillionError: an input is missing or does not fit.
    """
    _refuse_old_run(out)
    config = _model_config(shape)
    tokenizer = checkpoint.load_tokenizer(tokenizer_folder)
    check_tokenizer(tokenizer, config)
    documents = encode_text(data, tokenizer, recipe.batching.length)
    torch.manual_seed(recipe.seed)
    model = _new_model(config, recipe.initial)
    return Trainer(model, tokenizer, documents, Progress(stage="pretrain", recipe=recipe), out).run()


@_denormals_flushed()
def sft(recipe: Recipe, base: Path, data: Path, out: Path) -> Path:
    """Train a checkpoint's model on a chat file, on the assistant's words only; returns the last checkpoint.

    Raises:
        TrillionError: an input is missing or does not fit.
    """
    _refuse_old_run(out)
    base = checkpoint.find(base)
    tokenizer = checkpoint.load_tokenizer(base)
    documents = encode_chats(data, tokenizer, recipe.batching.length)
    torch.manual_seed(recipe.seed)
    model = checkpoint.load_model(base)
    return Trainer(model, tokenizer, documents, Progress(stage="sft", recipe=recipe), out).run()


@_denormals_flushed()
def resume(out: Path, data: Path, stage: str) -> Path:
    """Go on with a run from its last checkpoint, by the recipe it began with; returns the last checkpoint.

    Raises:
        TrillionError: there is no such run, or an input does not fit.
    """
    last = checkpoint.find(out)
    saved = checkpoint.load(last)
    if saved.progress.stage != stage:
        raise StateError(f"{out} is a run of {saved.progress.stage}, not of {stage}: resume it with that command")
    tokenizer = checkpoint.load_tokenizer(last)
    encode = encode_text if stage == "pretrain" else encode_chats
    documents = encode(data, tokenizer, saved.progress.recipe.batching.length)
    trainer = Trainer(checkpoint.load_model(last), tokenizer, documents, saved.progress, out)
    trainer.restore(saved)
    return trainer.run()


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", config: Any) -> None:
    """Check that a tokenizer's ids mean to the model what they mean to it.

    Raises:
        TokenizerError: the model has too few embeddings, or names other special tokens.
    """
    if len(tokenizer) > config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's vocab_size is {config.vocab_size}: train "
            f"a tokenizer with --vocab-size {config.vocab_size}"
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        wanted, found = getattr(config, name), getattr(tokenizer, name)
        if wanted is not None and wanted != found:
            raise TokenizerError(
                f"the model's {name} is {wanted}, but the tokenizer's is {found}: use a tokenizer made by "
                "trillion-train tokenizer, or change the configuration"
            )


def _model_config(shape: str) -> Any:
    from transformers import AutoConfig

    import trillion_model
    from trillion_model import presets

    if shape in presets.names():
        return presets.get(shape)
    trillion_model.register()
    unknown = f"{shape!r} is no preset ({', '.join(presets.names())}), no directory with a config.json and no hub id"
    if "/" not in shape and not Path(shape).is_dir():
        raise StateError(unknown)
    try:
        return AutoConfig.from_pretrained(shape)
    except OSError as error:
        raise StateError(f"{unknown}: {error}") from error


@torch.no_grad()
def _new_model(config: Any, initial: Initial) -> Any:
    from transformers import AutoModelForCausalLM

    import trillion_model

    trillion_model.register()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if initial.embedding_std is not None:
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=initial.embedding_std)
    if initial.post_norm is not None:
        for name, weight in model.named_parameters():
            if name.endswith(("post_attention_layernorm.weight", "post_mlp_layernorm.weight")):
                weight.fill_(initial.post_norm - 1)  # norms are zero-centred
    return model


def _refuse_old_run(out: Path) -> None:
    if (out / checkpoint.LAST).exists():
        raise StateError(f"{out} already holds a run: give another --out, or --resume to go on with it")
