"""Prefill and decode of VAETKI-7B-A1B's shape on this CPU: our cache against others, in one engine and in Transformers.

Widths, heads, experts and vocabulary are the model's own, weights are random, and there are as many layers as
``--layers`` says. Each variant runs in turn, in a process of its own:

- latents, windows: what we serve;
- expanded, windows: every head's keys and values cached, on vLLM's own CPU attention (``expanded_vaetki.py``);
- latents, no windows: our attention, every layer global;
- Transformers: our model with its ``LatentCache``.

Prefill computes real prompts, in chunks of 2,048 tokens. Decode steps run over a cache filled with random numbers, so
that a context need not be computed first. "Attention" is everything from queries and latents to every head's output,
in all layers. At equal KV memory, as many requests decode as the engine admits.

    python benchmarks/attention_engine.py
    python benchmarks/attention_engine.py --quick --json attention.json
"""

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.attention_runs import EXPANDED, GIB, OURS, PRESET, VARIANTS, Case, Result, Step, measure

MORE, LESS = "more", "less"
"""What is better in a row."""

_TABLE_WIDTH = 120


def main(
    quick: Annotated[bool, typer.Option(help="Shorter prompts and fewer steps.")] = False,
    layers: Annotated[int, typer.Option(help="Layers of the model; every sixth is global.", min=1)] = 6,
    dtype: Annotated[str, typer.Option(help="Of weights, activations and cache.")] = "bfloat16",
    prefill: Annotated[str | None, typer.Option(help="Prompt lengths, with commas between.")] = None,
    context: Annotated[str | None, typer.Option(help="Contexts of decode steps, with commas between.")] = None,
    batch: Annotated[str, typer.Option(help="Requests that decode together, with commas between.")] = "1,8",
    kv_memory: Annotated[float, typer.Option(help="GiB of KV cache.")] = 2.0,
    steps: Annotated[int | None, typer.Option(help="Decode steps to take the median of.", min=1)] = None,
    threads: Annotated[int, typer.Option(help="Threads of the processor.", min=1)] = os.cpu_count() or 1,
    variant: Annotated[list[str] | None, typer.Option(help="Only these variants. Repeatable.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Print tokens a second of prefill, times of decode steps, and what decodes in equal KV memory.

    Example: python benchmarks/attention_engine.py --quick --layers 6
    """
    contexts = _numbers(context or ("1024,16384" if quick else "1024,4096,16384"))
    prefills = _numbers(prefill or ("512,2048" if quick else "512,4096,16384"))
    cases = [
        Case(
            variant=name,
            layers=layers,
            dtype=dtype,
            prefills=prefills,
            decodes=tuple((tokens, requests) for tokens in contexts for requests in _numbers(batch)),
            full_context=max(contexts),
            kv_memory=int(kv_memory * GIB),
            steps=steps or (3 if quick else 8),
            threads=threads,
        )
        for name in variant or VARIANTS
    ]
    results: dict[str, Result] = {}
    # An engine cannot be taken down for another within a process.
    workers = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with workers, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(cases))
        for case in cases:
            progress.update(task, description=case.variant)
            results[case.variant] = workers.submit(measure, case).result()
            progress.advance(task)

    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(
        _table(results, f"{PRESET}, {layers} layers, {dtype}, {threads} threads, {kv_memory:g} GiB of KV cache")
    )
    seconds = ", ".join(f"{name} {result.seconds:.0f} s" for name, result in results.items())
    console.print(f"Measured in {seconds}.")
    if json_file is not None:
        figures = [{"case": asdict(case), "result": asdict(results[case.variant])} for case in cases]
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _table(results: dict[str, Result], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in results:
        table.add_column(name, justify="right")
    ratio = OURS in results and EXPANDED in results
    if ratio:
        table.add_column("ours over expanded", justify="right")

    def add(label: str, figures: dict[str, float | None], shown: str, better: str | None) -> None:
        row = [shown.format(figure) if figure is not None else "-" for figure in figures.values()]
        if ratio:
            ours, theirs = figures[OURS], figures[EXPANDED]
            if better is None:
                row.append("")
            elif ours is None or theirs is None:
                row.append("-")
            else:
                row.append(f"{ours / theirs if better == MORE else theirs / ours:.2f} x")
        table.add_row(label, *row)

    first = next(iter(results.values()))
    for length in first.prefill:
        figures = {name: result.prefill[length] for name, result in results.items()}
        add(f"prefill {length:,}, tokens/s", figures, "{:,.0f}", MORE)
    for context, batch in sorted({(step.context, step.batch) for result in results.values() for step in result.steps}):
        table.add_section()
        steps = {name: _step(result, context, batch) for name, result in results.items()}
        for part, label in (("seconds", "step"), ("attention", "its attention")):
            figures = {name: 1000 * getattr(step, part) if step else None for name, step in steps.items()}
            add(f"{label} at {context:,} x {batch}, ms", figures, "{:,.1f}", LESS)
    table.add_section()
    full = {name: result.full for name, result in results.items()}
    add("requests that fit", {name: step and step.batch for name, step in full.items()}, "{:,}", MORE)
    add("step of all of them, ms", {n: step and 1000 * step.seconds for n, step in full.items()}, "{:,.1f}", None)
    add("decode, tokens/s", {n: step and step.batch / step.seconds for n, step in full.items()}, "{:,.1f}", MORE)
    return table


def _step(result: Result, context: int, batch: int) -> Step | None:
    return next((step for step in result.steps if (step.context, step.batch) == (context, batch)), None)


if __name__ == "__main__":
    typer.run(main)
