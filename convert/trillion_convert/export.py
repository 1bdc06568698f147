"""From a training checkpoint to a Hugging Face directory in the published names and layout."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert import model_card
from trillion_convert.checkpoint import Checkpoint, Form, open_checkpoint
from trillion_convert.errors import ConvertError
from trillion_convert.safetensors_writer import write_safetensors
from trillion_convert.staging import staged_directory
from trillion_convert.tensor_files import INDEX, TensorInfo, all_finite
from trillion_convert.tokenizer import check_tokenizer, copy_tokenizer
from trillion_model.architecture import family
from trillion_model.errors import CheckpointError
from trillion_model.sizes import count_parameters

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_ROOM_FOR_SMALL_FILES = 64 * 2**20
_TEMPERATURE, _TOP_P = 0.6, 0.95


@dataclass(frozen=True)
class ExportReport:
    """What was written: number of tensors, weight files and bytes of weights."""

    tensors: int
    files: int
    nbytes: int


def export(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    force: bool = False,
    on_bytes: Callable[[int, int], None] = lambda written, total: None,
) -> ExportReport:
    """Write ``target`` from the training checkpoint ``source``; it appears whole or not at all.

    Args:
        source: a training checkpoint, or a run's directory, whose last checkpoint is taken.
        target: the directory to make.
        dtype: "float32", "bfloat16" or "float16"; None keeps the one it was trained in.
        max_shard_size: most bytes of a weight file, such as "5GB"; a larger tensor has a file of its own.
        force: replace an earlier export.
        on_bytes: told bytes of weights written so far, and in all.

    Raises:
        CheckpointError: the source is damaged, or does not fit its configuration or its tokenizer.
        TargetError: the target is in use, or the disk is too small.
    """
    checkpoint = open_checkpoint(source, Form.TRAIN)
    tokenizer = check_tokenizer(checkpoint)
    dtype = dtype or _stored_dtype(checkpoint)
    infos = {name: TensorInfo(shape, dtype) for name, shape in checkpoint.architecture.published_shapes().items()}
    total = sum(info.nbytes for info in infos.values())
    needed = total + _ROOM_FOR_SMALL_FILES
    with staged_directory(target, source=checkpoint.directory, needed=needed, force=force) as folder:
        shards = plan_shards(infos, max_shard_size)
        reader = _PublishedReader(checkpoint, dtype, lambda written: on_bytes(written, total))
        for file, names in shards.items():
            write_safetensors(folder / file, {name: infos[name] for name in names}, reader.read)
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        _write_small_files(folder, checkpoint, tokenizer, dtype, target.name)
    return ExportReport(len(infos), len(shards), total)


def plan_shards(infos: dict[str, TensorInfo], max_shard_size: str) -> dict[str, list[str]]:
    """Weight files and the tensors that each holds, in order.

    Raises:
        ConvertError: ``max_shard_size`` is no size.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    on_meta = {
        name: torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta") for name, info in infos.items()
    }
    try:
        return split_torch_state_dict_into_shards(on_meta, max_shard_size=max_shard_size).filename_to_tensors
    except ValueError as error:
        raise ConvertError(f"--max-shard-size {max_shard_size!r} is no size; write it like 5GB or 500MB") from error


class _PublishedReader:
    """Gives published tensors by name, in any order that stays with a module tensor for a while."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, on_bytes: Callable[[int], None]) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._on_bytes = on_bytes
        self._written = 0
        self._parts: dict[str, torch.Tensor] = {}
        layout = checkpoint.architecture.layout
        self._module_name = {
            published: module_name
            for module_name, shape in checkpoint.architecture.module_shapes.items()
            for published in layout.published_names(module_name, shape)
        }

    def read(self, name: str) -> "torch.Tensor":
        import torch

        if name not in self._parts:
            module_name = self._module_name[name]
            tensor = self._checkpoint.tensors.read(module_name)
            self._parts = self._checkpoint.architecture.layout.to_published(module_name, tensor)
        part = self._parts[name].to(getattr(torch, self._dtype))
        if not all_finite(part):
            raise CheckpointError(
                f"{name}: holds numbers that are infinite or none at all once they are {self._dtype}; the training "
                "run diverged, or they need --dtype bfloat16 or float32"
            )
        self._written += part.nbytes
        self._on_bytes(self._written)
        return part


def _stored_dtype(checkpoint: Checkpoint) -> str:
    if len(checkpoint.dtypes) > 1:
        raise CheckpointError(
            f"{checkpoint.directory} mixes {' and '.join(checkpoint.dtypes)}; choose one with --dtype"
        )
    return checkpoint.dtypes[0]


def _write_small_files(
    folder: Path, checkpoint: Checkpoint, tokenizer: "PreTrainedTokenizerBase", dtype: str, name: str
) -> None:
    """Everything but the weights; ours come after the tokenizer's, so that they win."""
    from transformers import GenerationConfig

    architecture = checkpoint.architecture
    copy_tokenizer(checkpoint.tokenizer_directory, folder)
    if tokenizer.chat_template is None:
        template = family(architecture.config, "chat_format").chat_template()
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    config = architecture.config.from_dict(architecture.config.to_dict())
    config.architectures = [architecture.class_name]
    config.dtype = dtype
    config.save_pretrained(folder)

    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id,
        do_sample=True,
        temperature=_TEMPERATURE,
        top_p=_TOP_P,
    ).save_pretrained(folder)
    card = model_card.render(name, config, count_parameters(architecture), dtype)
    (folder / "README.md").write_text(card, encoding="utf-8")
