"""Whether the gateway keeps what it should and lets go of what it should not, over a null upstream.

Memory over many requests; many streams held open at once; and how soon an abandoned request reaches the engine.
Every figure stands beside the same for a bare Starlette pass-through.

    python benchmarks/gateway_soak.py
    python benchmarks/gateway_soak.py --quick --json soak.json
"""

import asyncio
import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import gateways
import httpx
import typer
from gateway_overhead import answer_ids, percentile, request_body
from gateways import Running
from null_upstream import LEFT
from rich.console import Console
from rich.table import Table
from stream_client import Load, send

_PARTS = 10


@dataclass(frozen=True)
class Soak:
    """What was found of one gateway. Memory is resident, in MiB; times are in milliseconds.

    Attributes:
        requests: answered with 200, of those sent.
        memory: after warming up, and after each tenth of the requests.
        streams: held open at once, and how many of them failed.
        abort_p50, abort_p99: from the client's leaving to the upstream's hearing of it.
    """

    target: str
    requests: int
    failed: int
    memory: list[float]
    streams: int
    streams_seconds: float
    streams_failed: int
    abort_p50: float
    abort_p99: float


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A hundredth of everything.")] = False,
    requests: Annotated[int, typer.Option(help="Requests for the memory's sake.", min=100)] = 100_000,
    streams: Annotated[int, typer.Option(help="Streams held open at once.", min=1)] = 1000,
    seconds: Annotated[float, typer.Option(help="How long each of them takes.", min=1)] = 300.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
) -> None:
    """Measure and print."""
    if quick:
        requests, streams, seconds = max(requests // 100, 100), max(streams // 10, 1), min(seconds, 10.0)
    mine, theirs = gateways.cores()
    os.sched_setaffinity(0, {mine})
    tokenizer = gateways.benchmark_tokenizer()
    results = []
    for name in ("trillion-serve", "starlette"):
        memory, failed = measure_memory(name, mine, theirs, tokenizer, requests)
        held_failed = hold_streams(name, mine, theirs, tokenizer, streams, seconds)
        aborts = measure_aborts(name, mine, theirs, tokenizer, 20 if quick else 200)
        p50, p99 = percentile(aborts, 50), percentile(aborts, 99)
        results.append(Soak(name, requests, failed, memory, streams, seconds, held_failed, p50, p99))
    Console(highlight=False).print(table(results))
    if json_file:
        json_file.write_text(json.dumps(list(map(asdict, results)), indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def chain(name: str, mine: int, theirs: int, tokenizer: Path, interval_ms: float, chunks: int | None = None) -> Any:
    """A gateway and the upstream behind it; so many chunks without an end token, or an answer that has one."""
    ids = answer_ids(tokenizer)
    if chunks is not None:
        ids = ids[:-1]
    with gateways.upstream(mine, interval_ms, ids, chunks or len(ids)) as upstream:
        start = gateways.starlette(theirs, upstream.url)
        if name == "trillion-serve":
            start = gateways.ours(theirs, tokenizer, upstream.url)
        with start as gateway:
            yield gateway, upstream


def measure_memory(name: str, mine: int, theirs: int, tokenizer: Path, requests: int) -> tuple[list[float], int]:
    """Memory at ten points, streamed requests and whole ones in turns; and how many failed."""
    failed = 0
    with chain(name, mine, theirs, tokenizer, 0.0) as (gateway, _):

        def ask(count: int, *, stream: bool) -> None:
            nonlocal failed
            load = Load(gateway.url, request_body(stream=stream), 50, count, seconds=3600)
            failed += sum(sample.status != 200 for sample in asyncio.run(send(load))[0])

        ask(max(requests // 20, 50), stream=True)
        ask(max(requests // 20, 50), stream=False)
        memory = [gateway.rss_mib]
        for _ in range(_PARTS):
            ask(requests // _PARTS // 2, stream=True)
            ask(requests // _PARTS // 2, stream=False)
            memory.append(gateway.rss_mib)
    return memory, failed


def hold_streams(name: str, mine: int, theirs: int, tokenizer: Path, streams: int, seconds: float) -> int:
    """Open so many streams, let each run for so long, and count those that did not, or did not end well."""
    chunks = max(int(seconds), 2)
    with chain(name, mine, theirs, tokenizer, 1000 * seconds / chunks, chunks) as (gateway, _):
        body = json.loads(request_body(stream=True)) | {"max_tokens": chunks + 8, "repetition_detection": False}
        spread = min(10.0, seconds / 4)
        load = Load(gateway.url, json.dumps(body).encode(), streams, streams, 3600, spread, timeout=seconds * 2 + 30)
        samples, _ = asyncio.run(send(load))
    return sum(sample.status != 200 or sample.total < seconds for sample in samples)


def measure_aborts(name: str, mine: int, theirs: int, tokenizer: Path, count: int) -> list[float]:
    """Milliseconds from a client's leaving mid-stream to the upstream's hearing of it."""
    found = []
    with chain(name, mine, theirs, tokenizer, 50.0) as (gateway, upstream):
        for number in range(count):
            left = leave(gateway)
            end = time.monotonic() + 5
            while len(heard := httpx.get(upstream.url + LEFT).json()) <= number and time.monotonic() < end:
                time.sleep(0.01)
            found.append(1000 * (heard[-1] - left) if len(heard) > number else 5000.0)
    return found


def leave(gateway: Running) -> float:
    """Open a stream, read its first bytes and go; when that was."""
    url = gateway.url + "/v1/chat/completions"
    headers = {"Content-Type": "application/json"}
    body = request_body(stream=True)
    with httpx.Client(timeout=30, headers=headers) as client, client.stream("POST", url, content=body) as answer:
        answer.raise_for_status()
        next(answer.iter_raw())
        left = time.monotonic()
    return left


def table(results: list[Soak]) -> Table:
    """One row a gateway."""
    found = Table(title="over a null upstream")
    columns = ("gateway", "requests", "failed", "MiB warm", "after", "growth")
    for column in (*columns, "streams", "for s", "failed", "abort ms p50", "p99"):
        found.add_column(column, justify="left" if column == "gateway" else "right")
    for r in results:
        first, last = r.memory[0], r.memory[-1]
        memory = (f"{first:.1f}", f"{last:.1f}", f"{100 * (last / first - 1):+.1f} %")
        held = (str(r.streams), f"{r.streams_seconds:.0f}", str(r.streams_failed))
        aborts = (f"{r.abort_p50:.1f}", f"{r.abort_p99:.1f}")
        found.add_row(r.target, str(r.requests), str(r.failed), *memory, *held, *aborts)
    return found


if __name__ == "__main__":
    typer.run(main)
