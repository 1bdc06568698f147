"""``trillion-convert inspect``: a preset's or a directory's sizes, as figures and as a table."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trillion_convert.checkpoint import open_checkpoint
from trillion_model import presets
from trillion_model.architecture import Architecture
from trillion_model.sizes import BYTES, KvCache, Parameters, count_parameters, kv_cache

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
        stored: dtypes and bytes of the weights on disk; None for a preset.
    """

    model: str
    model_type: str
    parameters: Parameters
    cache: KvCache
    context: int
    stored: dict[str, int] | None

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
    stored = None
    if Path(model).is_dir():
        checkpoint = open_checkpoint(Path(model))
        architecture = checkpoint.architecture
        stored = checkpoint.stored_bytes()
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
    )


def render(inspection: Inspection) -> None:
    """Print the figures as tables."""
    from rich.console import Console
    from rich.table import Table

    total, active = inspection.parameters.total, inspection.parameters.active
    parts = Table("part", title=f"{inspection.model} ({inspection.model_type})", title_justify="left")
    for heading in ("parameters", "active"):
        parts.add_column(heading, justify="right")
    for part, count in total.items():
        parts.add_row(part, f"{count:,}", f"{active[part]:,}")
    parts.add_section()
    parts.add_row("all", f"{sum(total.values()):,}", f"{sum(active.values()):,}")
    parts.add_row("without the input embedding", "", f"{inspection.parameters.active_without_embeddings:,}")

    cache = inspection.cache
    memory = Table()
    memory.add_column("bytes", no_wrap=True)
    for heading in ("float32", "bfloat16 or float16"):
        memory.add_column(heading, justify="right")
    rows = {"weights": [sum(total.values()) * BYTES[dtype] for dtype in _SHOWN]}
    for part, label in {
        "layer": "KV, a token and layer",
        "global": f"KV, a token, {cache.global_layers} global layers",
        "local": f"KV, a token, {cache.local_layers} local layers, window {cache.window}",
    }.items():
        rows[label] = [cache.bytes_per_token(dtype)[part] for dtype in _SHOWN]
    rows[f"KV, a request of {inspection.context:,} tokens"] = [
        cache.bytes_per_request(dtype, inspection.context) for dtype in _SHOWN
    ]
    for label, figures in rows.items():
        memory.add_row(label, *(f"{figure:,}" for figure in figures))

    console = Console()
    console.print(parts, memory)
    for dtype, size in (inspection.stored or {}).items():
        console.print(f"stored as {dtype}: {size:,} bytes")
