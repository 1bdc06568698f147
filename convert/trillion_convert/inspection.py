"""``trillion-convert inspect``: a preset's or a directory's sizes, as figures and as a table."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint, open_checkpoint
from trillion_convert.conversion import parts_of
from trillion_convert.forms import FORMS
from trillion_model import presets
from trillion_model.architecture import Architecture
from trillion_model.sizes import BYTES, KvCache, Parameters, count_parameters, kv_cache, part_of

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = ("float32", "bfloat16")


@dataclass(frozen=True)
class Inspection:
    """Sizes of one model.

    Attributes:
        model: what was asked for.
        model_type: the family.
        parameters: by part.
        cache: the KV cache.
        context: most tokens of a request.
        stored: bytes of the weights on disk by dtype; None for a preset.
        parts: the same by part of the model, and in it by dtype; None for a preset.
    """

    model: str
    model_type: str
    parameters: Parameters
    cache: KvCache
    context: int
    stored: dict[str, int] | None
    parts: dict[str, dict[str, int]] | None

    def to_json(self) -> str:
        """The figures, with totals and the bytes that follow from them."""
        total = sum(self.parameters.total.values())
        figures = asdict(self) | {
            "total": total,
            "active": sum(self.parameters.active.values()),
            "active_without_embeddings": self.parameters.active_without_embeddings,
            "weight_bytes": {dtype: total * size for dtype, size in BYTES.items()},
            "kv_bytes_per_token": {dtype: self.cache.bytes_per_token(dtype) for dtype in BYTES},
            "kv_bytes_per_request": {dtype: self.cache.bytes_per_request(dtype, self.context) for dtype in BYTES},
        }
        return json.dumps(figures, indent=2)


def inspect_model(model: str) -> Inspection:
    """Inspect a directory, or a preset where there is no directory of that name.

    Raises:
        PresetError: it is neither.
        CheckpointError: the directory's tensors do not fit its configuration.
    """
    stored, parts = None, None
    if Path(model).is_dir():
        checkpoint = open_checkpoint(Path(model))
        architecture = checkpoint.architecture
        stored, parts = checkpoint.stored_bytes(), _stored_by_part(checkpoint)
    else:
        architecture = Architecture.of(presets.get(model))
    config = architecture.config
    return Inspection(
        model,
        config.model_type,
        count_parameters(architecture),
        kv_cache(config),
        config.max_position_embeddings,
        stored,
        parts,
    )


def _stored_by_part(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    table, found = FORMS[checkpoint.form].table(checkpoint.architecture), dict[str, dict[str, int]]()
    for name, info in checkpoint.tensors.items():
        # A quantised tensor's name has one more word behind a published one, which the part does not turn on; what is
        # only trained has no published name.
        published = name if checkpoint.recipe else next(iter(parts_of(table, name, info.shape)), name)
        sizes = found.setdefault(part_of(published), {})
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return found


def render(inspection: Inspection) -> None:
    """Print the figures as tables."""
    from rich.console import Console
    from rich.table import Table

    total, active = inspection.parameters.total, inspection.parameters.active
    parts = Table(title=f"{inspection.model} ({inspection.model_type})", title_justify="left")
    parts.add_column("part", overflow="fold")
    for heading in ("parameters", "active"):
        parts.add_column(heading, justify="right", overflow="fold")
    for part, count in total.items():
        parts.add_row(part, f"{count:,}", f"{active[part]:,}")
    parts.add_section()
    parts.add_row("all", f"{sum(total.values()):,}", f"{sum(active.values()):,}")
    parts.add_row("without the input embedding", "", f"{inspection.parameters.active_without_embeddings:,}")

    cache = inspection.cache
    memory = Table()
    memory.add_column("bytes", overflow="fold")
    for heading in ("float32", "bfloat16\nor float16"):
        memory.add_column(heading, justify="right", overflow="fold")
    rows = {"weights": [sum(total.values()) * BYTES[dtype] for dtype in _SHOWN]}
    for part, label in {
        "layer": "KV, a token and layer",
        "global": f"KV, a token, {cache.global_layers} global layers",
        "local": f"KV, a token, {cache.local_layers} local layers, window {cache.window}" if cache.local_layers else "",
    }.items():
        if label:
            rows[label] = [cache.bytes_per_token(dtype)[part] for dtype in _SHOWN]
    rows[f"KV, a request of {inspection.context:,} tokens"] = [
        cache.bytes_per_request(dtype, inspection.context) for dtype in _SHOWN
    ]
    for label, figures in rows.items():
        memory.add_row(label, *(f"{figure:,}" for figure in figures))

    console = Console()
    console.print(parts, memory)
    if inspection.stored and inspection.parts:
        console.print(_stored_table(inspection.stored, inspection.parts))


def _stored_table(stored: dict[str, int], parts: dict[str, dict[str, int]]) -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("bytes on disk", overflow="fold")
    for dtype in stored:
        table.add_column(dtype, justify="right", overflow="fold")
    for part, sizes in {**parts, "all": stored}.items():
        table.add_row(
            part, *(f"{sizes[dtype]:,}" if dtype in sizes else "" for dtype in stored), end_section=part == [*parts][-1]
        )
    return table
