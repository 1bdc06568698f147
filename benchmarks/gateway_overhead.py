"""What a gateway adds: ours, a bare Starlette pass-through, vllm-router, sglang-router and LiteLLM's proxy.

Every gateway runs on one core, the client and a null upstream on another. The same load goes to each in turns. Paced:
the upstream sends 32 chunks 20 ms apart; what is added is a gateway's percentile less that of the upstream asked
directly. Unpaced: as many requests a second as 50 connections get answered. Ours applies a chat template, tokenises,
speaks token ids upstream, decodes and splits reasoning; the others pass bytes through.

    python benchmarks/gateway_overhead.py
    python benchmarks/gateway_overhead.py --quick --json overhead.json
"""

import asyncio
import contextlib
import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import gateways
import typer
from gateways import Running
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stream_client import Load, Sample, send

DIRECT = "direct"
SECONDS = 0.64
"""What a paced answer takes."""
PROMPT_WORDS = 120
"""About 200 tokens of the demo's tokenizer, with the template's."""


@dataclass(frozen=True)
class Paced:
    """Milliseconds of a paced load, and how many requests failed."""

    target: str
    concurrency: int
    ttft_p50: float
    ttft_p99: float
    total_p50: float
    total_p99: float
    requests: int
    failed: int


@dataclass(frozen=True)
class Unpaced:
    """Requests a second, and resident memory in MiB before and after."""

    target: str
    streamed: float
    whole: float
    failed: int
    memory_requests: int
    memory_before: float
    memory_after: float


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    concurrencies: tuple[int, ...]
    rounds: int
    answers: int
    """Paced answers for each connection and round."""
    unpaced_seconds: float
    memory_requests: int


QUICK = Plan(concurrencies=(1, 100), rounds=2, answers=4, unpaced_seconds=4.0, memory_requests=1000)
WHOLE = Plan(concurrencies=(1, 10, 50, 100, 200), rounds=3, answers=8, unpaced_seconds=10.0, memory_requests=5000)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests and concurrencies.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
    peers: Annotated[bool, typer.Option(help="Also measure the gateways that are not ours.")] = True,
) -> None:
    """Measure and print."""
    plan = QUICK if quick else WHOLE
    mine, theirs = gateways.cores()
    os.sched_setaffinity(0, {mine})
    tokenizer = gateways.benchmark_tokenizer()
    ids = answer_ids(tokenizer)
    console = Console(highlight=False)
    with Progress(console=Console(stderr=True), disable=not console.is_terminal) as progress:
        with contextlib.ExitStack() as stack:
            targets = start_all(stack, mine, theirs, tokenizer, ids, 20.0, peers)
            paced = measure_paced(targets, plan, progress)
        with contextlib.ExitStack() as stack:
            targets = start_all(stack, mine, theirs, tokenizer, ids, 0.0, peers)
            unpaced = measure_unpaced(targets, plan, progress)
    console.print(paced_table(paced))
    console.print(unpaced_table(unpaced))
    if json_file:
        results = {"paced": list(map(asdict, paced)), "unpaced": list(map(asdict, unpaced))}
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def start_all(
    stack: contextlib.ExitStack,
    mine: int,
    theirs: int,
    tokenizer: Path,
    ids: list[int],
    interval_ms: float,
    peers: bool,
) -> list[Running]:
    """The upstream itself, then every gateway in front of it."""
    direct = stack.enter_context(gateways.upstream(mine, interval_ms, ids))
    found = [
        gateways.ours(theirs, tokenizer, direct.url),
        gateways.starlette(theirs, direct.url),
        gateways.starlette(theirs, direct.url, "httpx"),
    ]
    if peers:
        environment = gateways.peers_environment()
        found += [
            start(theirs, environment, direct.url)
            for start in (gateways.vllm_router, gateways.sglang_router, gateways.litellm)
        ]
    return [direct, *(stack.enter_context(gateway) for gateway in found)]


def answer_ids(tokenizer: Path) -> list[int]:
    """Token ids that the upstream answers with: words, then the end token."""
    from trillion_serve.chat.tokenizer import ChatTokenizer

    chat = ChatTokenizer.load(str(tokenizer))
    words = chat.encode("</think>\n\n" + "three hundred forty-seven " * 32)[:31]
    return [*words, chat.end_ids[0]]


def request_body(*, stream: bool) -> bytes:
    """A question of about 200 tokens."""
    text = " ".join(["three hundred forty-seven"] * (PROMPT_WORDS // 3))
    body = {"model": gateways.MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 64}
    return json.dumps({**body, "stream": stream}).encode()


def measure_paced(targets: list[Running], plan: Plan, progress: Progress) -> list[Paced]:
    """The same paced load for each target, in turns."""
    samples: dict[tuple[str, int], list[Sample]] = {}
    turns = [(c, t) for c in plan.concurrencies for _ in range(plan.rounds) for t in targets]
    for concurrency, target in progress.track(turns, description="paced"):
        requests = max(concurrency * plan.answers, 20)
        seconds = 2 * requests / concurrency * SECONDS + 2
        load = Load(target.url, request_body(stream=True), concurrency, requests, seconds, spread=SECONDS)
        samples.setdefault((target.name, concurrency), []).extend(asyncio.run(send(load))[0])
    return [_paced(name, concurrency, found) for (name, concurrency), found in samples.items()]


def measure_unpaced(targets: list[Running], plan: Plan, progress: Progress) -> list[Unpaced]:
    """As many requests as are answered, streamed and whole, then memory over many requests."""
    results = []
    for target in progress.track(targets, description="unpaced"):
        rates, failed = [], 0
        for stream in (True, False):
            load = Load(target.url, request_body(stream=stream), 50, 10**6, plan.unpaced_seconds)
            samples, seconds = asyncio.run(send(load))
            good = [sample for sample in samples if sample.status == 200]
            rates.append(len(good) / seconds)
            failed += len(samples) - len(good)
        before = target.rss_mib
        load = Load(target.url, request_body(stream=True), 50, plan.memory_requests, 30.0)
        samples, _ = asyncio.run(send(load))
        failed += sum(sample.status != 200 for sample in samples)
        results.append(Unpaced(target.name, rates[0], rates[1], failed, len(samples), before, target.rss_mib))
    return results


def _paced(name: str, concurrency: int, samples: list[Sample]) -> Paced:
    good = [sample for sample in samples if sample.status == 200]
    ttft, total = (
        [1000 * value for value in values] for values in zip(*((s.ttft, s.total) for s in good), strict=True)
    )
    return Paced(
        name,
        concurrency,
        *(percentile(values, q) for values in (ttft, total) for q in (50, 99)),
        requests=len(samples),
        failed=len(samples) - len(good),
    )


def percentile(values: list[float], q: int) -> float:
    """The q-th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[q - 1]


def paced_table(results: list[Paced]) -> Table:
    """Added milliseconds, less what the upstream itself takes."""
    table = Table(title="added by a gateway, in ms: 32 chunks 20 ms apart (direct: the upstream's own, not added)")
    for column in ("streams", "gateway", "ttft p50", "p99", "total p50", "p99", "requests", "failed"):
        table.add_column(column, justify="left" if column == "gateway" else "right")
    direct = {r.concurrency: r for r in results if r.target == DIRECT}
    for r in results:
        base = direct[r.concurrency]
        names = ("ttft_p50", "ttft_p99", "total_p50", "total_p99")
        shown = [getattr(r, n) - (0 if r is base else getattr(base, n)) for n in names]
        table.add_row(str(r.concurrency), r.target, *(f"{v:.2f}" for v in shown), str(r.requests), str(r.failed))
    return table


def unpaced_table(results: list[Unpaced]) -> Table:
    """Requests a second and memory, and the ratios of ours to the others."""
    table = Table(title="50 connections, no pauses: requests a second, and memory over streamed requests")
    for column in (
        "gateway",
        "streamed/s",
        "ours is",
        "JSON/s",
        "ours is",
        "requests",
        "MiB before",
        "after",
        "failed",
    ):
        table.add_column(column, justify="left" if column == "gateway" else "right")
    ours = next(r for r in results if r.target == "trillion-serve")
    for r in results:
        ratios = [f"{a / b:.2f}x" if b else "-" for a, b in ((ours.streamed, r.streamed), (ours.whole, r.whole))]
        memory = [f"{r.memory_before:.0f}", f"{r.memory_after:.0f}"]
        table.add_row(
            *(r.target, f"{r.streamed:.0f}", ratios[0], f"{r.whole:.0f}", ratios[1]),
            *(str(r.memory_requests), *memory, str(r.failed)),
        )
    return table


if __name__ == "__main__":
    typer.run(main)
