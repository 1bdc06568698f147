"""How many requests a second an OpenAI server takes within an objective, by a sweep of request rates.

Each rate is one run of `vllm bench serve`, which sends chats at random moments of that mean rate. Goodput counts the
requests whose time to first token and time per token both keep the objective. Name a second server to compare: its
figures stand beside the first one's, with the ratio.

    pip install 'trillion-serve[bench]'
    python benchmarks/throughput.py http://127.0.0.1:8000 --model vaetki-nano --tokenizer DIR
    python benchmarks/throughput.py http://127.0.0.1:8000 --peer http://127.0.0.1:8001 --model m --tokenizer DIR --quick
"""

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

QUESTIONS = (
    "한글로 읽어 보세요: {n}",
    "How do you read {n}",
    "다음을 숫자로 쓰세요: 육십육. 그리고 {n}도요.",
    "Which is larger, {n} or 58?",
)


@dataclass(frozen=True)
class Point:
    """One run. Times are in milliseconds.

    Attributes:
        rate: requests a second that were sent.
        goodput: requests a second that kept the objective.
    """

    server: str
    rate: float
    throughput: float
    goodput: float
    output_tokens_per_second: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    completed: int
    failed: int


def main(
    url: Annotated[str, typer.Argument(help="Base URL of the server, without /v1; on the loopback.")],
    model: Annotated[str, typer.Option(help="What the server calls the model.")],
    tokenizer: Annotated[str, typer.Option(help="Directory or hub id of its tokenizer, to count tokens.")],
    peer: Annotated[str | None, typer.Option(help="Base URL of a second server to compare with.")] = None,
    rates: Annotated[str, typer.Option(help="Requests a second, between commas.")] = "1,2,4,8,16,32",
    seconds: Annotated[float, typer.Option(help="How long each rate is held.", min=1)] = 30.0,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=2)] = 64,
    ttft_ms: Annotated[float, typer.Option(help="Objective: milliseconds to the first token.")] = 500.0,
    tpot_ms: Annotated[float, typer.Option(help="Objective: milliseconds for each further token.")] = 50.0,
    quick: Annotated[bool, typer.Option("--quick", help="Three rates, five seconds each.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them into this file (.png or .svg).")] = None,
) -> None:
    """Measure and print."""
    if importlib.util.find_spec("pandas") is None:
        raise typer.BadParameter("vllm bench serve reads prompts with pandas: pip install 'trillion-serve[bench]'")
    swept = [float(rate) for rate in rates.split(",")]
    if quick:
        swept, seconds = swept[:3], 5.0
    servers = {"server": url} | ({"peer": peer} if peer else {})
    points = []
    console = Console(highlight=False)
    turns = [(rate, name) for rate in swept for name in servers]
    with Progress(console=Console(stderr=True), disable=not console.is_terminal) as progress:
        for rate, name in progress.track(turns, description="rates"):
            objective = {"ttft": ttft_ms, "tpot": tpot_ms}
            found = run(servers[name], model, tokenizer, rate, max(int(rate * seconds), 5), max_tokens, objective)
            points.append(_point(name, rate, found))
    console.print(table(points))
    if json_file:
        json_file.write_text(json.dumps(list(map(asdict, points)), indent=2) + "\n", encoding="utf-8")
    if plot:
        draw(points, plot)


def run(
    url: str, model: str, tokenizer: str, rate: float, requests: int, max_tokens: int, objective: dict[str, float]
) -> dict[str, Any]:
    """One run of ``vllm bench serve``; what it found.

    Raises:
        typer.BadParameter: the server is not on the loopback.
        subprocess.CalledProcessError: the run failed; its messages are above.
    """
    if not url.startswith(("http://127.0.0.1:", "http://localhost:")):
        raise typer.BadParameter(f"{url} is not on the loopback; this benchmark loads nothing else")
    with tempfile.TemporaryDirectory() as scratch:
        prompts = Path(scratch, "prompts.jsonl")
        rng = random.Random(0)
        lines = [{"prompt": rng.choice(QUESTIONS).format(n=rng.randint(100, 999))} for _ in range(requests)]
        prompts.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
        command += ["--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions"]
        command += ["--model", model, "--tokenizer", tokenizer, "--dataset-name", "custom"]
        command += ["--dataset-path", str(prompts), "--custom-output-len", str(max_tokens)]
        command += ["--num-prompts", str(requests), "--request-rate", str(rate), "--disable-tqdm"]
        command += ["--goodput", *(f"{name}:{value:g}" for name, value in objective.items())]
        command += ["--save-result", "--result-dir", scratch, "--result-filename", "result.json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(scratch, "result.json").read_text(encoding="utf-8"))


def _point(name: str, rate: float, found: dict[str, Any]) -> Point:
    return Point(
        server=name,
        rate=rate,
        throughput=found["request_throughput"],
        goodput=found["request_goodput"],
        output_tokens_per_second=found["output_throughput"],
        ttft_p50=found["median_ttft_ms"],
        ttft_p99=found["p99_ttft_ms"],
        tpot_p50=found["median_tpot_ms"],
        tpot_p99=found["p99_tpot_ms"],
        completed=found["completed"],
        failed=found["failed"],
    )


def table(points: list[Point]) -> Table:
    """One row a rate and server, and the ratio of the first server's goodput to the second's."""
    found = Table(title="request rates")
    columns = ("rate", "server", "requests/s", "goodput/s", "tokens/s", "ttft p50", "p99", "tpot p50", "p99", "failed")
    for column in (*columns, "server is"):
        found.add_column(column, justify="left" if column == "server" else "right")
    peers = {point.rate: point for point in points if point.server == "peer"}
    for p in points:
        peer = peers.get(p.rate)
        ratio = f"{p.goodput / peer.goodput:.2f}x" if peer and p is not peer and peer.goodput else ""
        times = (p.ttft_p50, p.ttft_p99, p.tpot_p50, p.tpot_p99)
        rates = (p.throughput, p.goodput, p.output_tokens_per_second)
        figures = (*(f"{value:.2f}" for value in rates), *(f"{value:.1f}" for value in times))
        found.add_row(f"{p.rate:g}", p.server, *figures, str(p.failed), ratio)
    return found


def draw(points: list[Point], path: Path) -> None:
    """Goodput and the first token's 99th percentile over the rate."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise typer.BadParameter("a plot needs matplotlib: pip install 'trillion-serve[bench]'") from error
    figure = Figure(figsize=(9, 4), layout="constrained")
    goodput, ttft = figure.subplots(1, 2)
    for name in dict.fromkeys(point.server for point in points):
        mine = [point for point in points if point.server == name]
        goodput.plot([p.rate for p in mine], [p.goodput for p in mine], marker="o", label=name)
        ttft.plot([p.rate for p in mine], [p.ttft_p99 for p in mine], marker="o", label=name)
    goodput.set(xlabel="requests a second, sent", ylabel="requests a second within the objective")
    ttft.set(xlabel="requests a second, sent", ylabel="time to first token, p99, ms", yscale="log")
    goodput.legend()
    figure.savefig(path)


if __name__ == "__main__":
    typer.run(main)
