"""Decode attention on a GPU: our kernel against the device's copy bandwidth, and against vLLM's Triton kernel.

Queries, caches and block tables are random, of the model's attention: its heads, latents of 576 numbers, blocks of 64
tokens. Each time is of one layer's decode, launched from a CUDA graph, caches rotated so that none is found in the
device's own cache. "Bandwidth" counts the latents that must be read, once each, over the time; the share is of what
copying memory to memory reaches, reads and writes counted. vLLM's kernel reads the whole context, as a layer without
our window would; "whole" is our kernel over the same.

    python benchmarks/attention_gpu.py
    python benchmarks/attention_gpu.py --quick --json attention_gpu.json
"""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

CONTEXTS = [1024, 4096, 16_384, 65_536]
BATCHES = [1, 8, 64]
QUICK_CONTEXTS, QUICK_BATCHES = [4096], [1, 8]
RANK, ROPE, BLOCK, WINDOW = 512, 64, 64, 512
HEADS = {"vaetki-7b-a1b": 12, "vaetki-20b-a2b": 16, "vaetki-100b-a10b": 24}
WARM, MEASURED = 3, 20
COPIED = 2**30
ROTATED = 2**28
"""Bytes that one replay reads at least, well above the cache of any device."""


@dataclass(frozen=True)
class Result:
    """One measurement of one layer's decode.

    Attributes:
        kernel: whose.
        heads, batch, context, window: of the attention; a window of 0 is none.
        microseconds: median.
        gb_per_second: latents read, over that.
        of_copy: the same over the copy bandwidth.
    """

    kernel: str
    heads: int
    batch: int
    context: int
    window: int
    microseconds: float
    gb_per_second: float
    of_copy: float


def seconds(step: Callable[[int], object], versions: int) -> float:
    """Median time of ``step(i)`` for i below ``versions``, replayed as a CUDA graph of all of them."""
    import torch

    for _ in range(WARM):
        step(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(versions):
            step(i)
    times = []
    for _ in range(WARM + MEASURED):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / versions)
    return statistics.median(times[WARM:])


def copy_bandwidth() -> float:
    """Bytes a second that memory copied to memory moves, read and written."""
    import torch

    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED / seconds(lambda _: target.copy_(source), 1)


def measure(heads: int, batch: int, context: int, copy: float) -> list[Result]:
    """Our kernel within the window and over the whole context, and vLLM's over the whole."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.mla.triton_mla import _compute_num_kv_splits
    from vllm.v1.attention.ops.triton_decode_attention import decode_attention_fwd

    from trillion_serve.plugins.vllm import latent_decode

    generator = torch.Generator("cuda").manual_seed(0)
    blocks = batch * context // BLOCK
    row = (RANK + ROPE) * 2
    scale = (128 + 64) ** -0.5

    def versions_of(read: int) -> int:
        return ROTATED // (batch * read * row) + 1

    held = 1 + max(blocks, 2 * ROTATED // (BLOCK * row))
    cache = torch.randn(held, BLOCK, RANK + ROPE, generator=generator, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(batch, heads, RANK + ROPE, generator=generator, device="cuda", dtype=torch.bfloat16)
    lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    tables = [
        (torch.randperm(held - 1, generator=generator, device="cuda")[:blocks] + 1).int().view(batch, -1)
        for _ in range(versions_of(WINDOW))
    ]
    out, lse = torch.empty_like(q[..., :RANK]), torch.empty(batch, heads, device="cuda", dtype=torch.bfloat16)
    parts = _compute_num_kv_splits(context, current_platform.num_compute_units())
    logits = torch.empty(batch, heads, parts, RANK + 1, device="cuda", dtype=torch.float32)
    one = torch.ones(1, device="cuda")

    def ours(window: int | None) -> Callable[[int], object]:
        return lambda i: latent_decode.decode(
            q, cache, tables[i], lengths, rank=RANK, scale=scale, window=window, longest=window or context
        )

    def stock(i: int) -> object:
        key = cache.unsqueeze(2)
        return decode_attention_fwd(
            q,
            key,
            key[..., :RANK],
            out,
            lse,
            tables[i],
            lengths,
            logits,
            parts,
            scale,
            BLOCK,
            k_scale=one,
            v_scale=one,
            is_mla=True,
        )

    results = []
    for kernel, window, step in (
        ("ours, window", WINDOW, ours(WINDOW)),
        ("ours, whole", 0, ours(None)),
        ("vLLM's Triton, whole", 0, stock),
    ):
        read = min(context, window or context)
        time = seconds(step, versions_of(read))
        rate = batch * read * row / time
        results.append(
            Result(
                kernel, heads, batch, context, window, round(time * 1e6, 1), round(rate / 1e9, 1), round(rate / copy, 3)
            )
        )
    return results


def main(
    quick: Annotated[bool, typer.Option(help="One context, small batches.")] = False,
    model: Annotated[str, typer.Option(help=f"Whose heads: {', '.join(HEADS)}.")] = "vaetki-100b-a10b",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Print times and bandwidths of decode attention on this machine's GPU.

    Example: python benchmarks/attention_gpu.py --quick
    """
    if model not in HEADS:
        raise typer.BadParameter(f"{model} is none of {', '.join(HEADS)}", param_hint="--model")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    if not torch.cuda.is_available():
        Console(stderr=True).print("This benchmark needs a CUDA device, and PyTorch finds none here.")
        raise typer.Exit(1)

    console = Console()
    copy = copy_bandwidth()
    cases = [
        (batch, context)
        for context in (QUICK_CONTEXTS if quick else CONTEXTS)
        for batch in (QUICK_BATCHES if quick else BATCHES)
    ]
    results: list[Result] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(cases))
        for batch, context in cases:
            progress.update(task, description=f"batch {batch}, context {context:,}")
            results += measure(HEADS[model], batch, context, copy)
            progress.advance(task)

    name = torch.cuda.get_device_name()
    table = Table(title=f"One layer's decode, {model}, on {name}; copying reaches {copy / 1e9:,.0f} GB/s")
    for column in ("context", "batch", "kernel", "µs", "GB/s", "of copy", "vLLM's time over this"):
        table.add_column(column, justify="left" if column == "kernel" else "right", no_wrap=True)
    for start in range(0, len(results), 3):
        group = results[start : start + 3]
        for result in group:
            table.add_row(
                f"{result.context:,}",
                str(result.batch),
                result.kernel,
                f"{result.microseconds:,.1f}",
                f"{result.gb_per_second:,.0f}",
                f"{result.of_copy:.0%}",
                f"{group[-1].microseconds / result.microseconds:.2f} x",
            )
    console.print(table)
    if json_file is not None:
        document = {"device": name, "copy_gb_per_second": round(copy / 1e9, 1), "results": [asdict(r) for r in results]}
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
