"""``trillion-serve plan``: what a model needs, and how many requests fit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trillion_model.output_files import check_output, write_output

if TYPE_CHECKING:
    from rich.table import Table

    from trillion_serve.plan.commands import Command
    from trillion_serve.plan.planning import Plan

_ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}


def plan(
    model: Annotated[str, typer.Argument(help="Preset name, model directory, or hub id.")],
    memory: Annotated[str, typer.Option(help="Memory of the devices: 80GiB, or 4x80GiB for four.")],
    context: Annotated[
        int | None, typer.Option(help="Tokens of the longest request; the model's own limit unless given.", min=1)
    ] = None,
    tp: Annotated[
        int | None, typer.Option(help="Tensor-parallel devices of an engine; all of them unless given.", min=1)
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    kv_dtype: Annotated[str, typer.Option(help="Of the KV cache: auto, which is as `--dtype`, or fp8.")] = "auto",
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Tokens in a step; what keeps windows worth having unless given.", min=1)
    ] = None,
    block_size: Annotated[int, typer.Option(help="Tokens in a block of the KV cache: 16 to 256.", min=1)] = 64,
    async_scheduling: Annotated[
        bool, typer.Option(help="Whether two steps are under way at once, as vLLM has it on a GPU.")
    ] = True,
    gpu_memory_utilization: Annotated[
        float, typer.Option(help="Share of a device's memory that the engine may use.", min=0.01, max=1.0)
    ] = 0.92,
    reserve: Annotated[str, typer.Option(help="Memory of a device for activations and graphs, of that share.")] = (
        "2GiB"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", callback=check_output, help="Also write the figures to this file.")
    ] = None,
) -> None:
    """Say what a model's weights and KV cache take, how many requests fit, and how to start an engine so.

    Requests are counted as vLLM counts them, for the cache as we serve it and for two others: latents without
    windows, and every head's keys and values.

    Example: `trillion-serve plan vaetki-100b-a10b --context 32768 --memory 4x80GiB --tp 4`
    """
    from trillion_serve.plan.commands import commands
    from trillion_serve.plan.memory import Devices, parse_bytes
    from trillion_serve.plan.models import load_model
    from trillion_serve.plan.planning import Settings, make_plan

    devices = Devices.parse(memory)
    reserved = parse_bytes(reserve)
    described = load_model(model)
    settings = Settings(
        context=context or described.config.max_position_embeddings,
        ranks=tp or devices.count,
        dtype=dtype,
        kv_dtype=kv_dtype,
        batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        async_scheduling=async_scheduling,
        utilization=gpu_memory_utilization,
        reserve=reserved,
    )
    made = make_plan(described, devices, settings)
    starts = commands(made)
    _show(made, starts)
    if json_file is not None:
        figures = made.to_dict() | {"commands": {engine: asdict(start) for engine, start in starts.items()}}
        write_output(json_file, json.dumps(figures, indent=2))


def _show(made: "Plan", starts: "dict[str, Command]") -> None:
    from rich.console import Console

    from trillion_serve.plan.memory import in_gib

    console = Console(highlight=False)
    settings, devices = made.settings, made.devices
    console.print(_weights_table(made))
    usable = int(devices.memory * settings.utilization)
    console.print(
        f"Each device: {in_gib(devices.memory)} GiB x {settings.utilization:g} = {in_gib(usable)} GiB, less "
        f"{in_gib(made.weight_bytes)} GiB of weights and {in_gib(settings.reserve)} GiB in reserve, leaves "
        f"{in_gib(made.kv_memory)} GiB for the KV cache in {settings.kv_dtype}.\n",
        soft_wrap=True,
    )
    console.print(_caches_table(made))
    if made.replicas > 1:
        console.print(f"{devices.count} devices make {made.replicas} such engines.")
    for engine, start in starts.items():
        told = ": ".join(filter(None, (_ENGINES[engine], start.note)))
        console.print(*filter(None, (f"\n{told}", start.line)), sep="\n", soft_wrap=True, markup=False)


def _weights_table(made: "Plan") -> "Table":
    from rich.table import Table

    from trillion_serve.plan.memory import in_gib

    stored = made.quantization or made.settings.dtype
    title = f"{made.model} ({made.model_type}), weights in {stored}, tensor parallel {made.settings.ranks}"
    table = Table(title=title, title_justify="left")
    table.add_column("GiB", overflow="fold")
    for heading in ("whole model", "each device", "of it repeated"):
        table.add_column(heading, justify="right", overflow="fold")
    for part in made.weights:
        table.add_row(part.part, *map(in_gib, (part.whole, part.device, part.repeated)))
    table.add_section()
    sums = [sum(getattr(part, field) for part in made.weights) for field in ("whole", "device", "repeated")]
    table.add_row("all", *map(in_gib, sums))
    return table


def _caches_table(made: "Plan") -> "Table":
    from rich.table import Table

    from trillion_serve.plan.memory import in_gib

    title = f"KV cache of requests of {made.settings.context:,} tokens, each device"
    table = Table(title=title, title_justify="left", padding=0, collapse_padding=True)
    table.add_column("cache", overflow="fold")
    for heading in ("bytes\na token", "past the\nwindow", "GiB a\nrequest", "GiB\nreserved", "requests", "tokens"):
        table.add_column(heading, justify="right", overflow="fold")
    for cache in made.caches:
        table.add_row(
            cache.name,
            f"{cache.token_bytes:,}",
            f"{cache.global_token_bytes:,}",
            in_gib(cache.request_bytes),
            in_gib(cache.capacity.reserved_per_request),
            f"{cache.capacity.requests:,}",
            f"{cache.capacity.tokens:,}",
        )
    return table
