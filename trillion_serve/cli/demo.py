"""``trillion-serve demo``: train a small VAETKI, convert it, verify it, serve it and talk to it."""

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trillion_serve.demo.stages import StageResult

SERVE_OPTIONS = ["--served-model-name", "vaetki-nano", "--dtype", "float32", "--kv-cache-memory", "0.25"]
SERVE_OPTIONS += ["--max-num-batched-tokens", "256"]  # an eighth of the context leaves windows their saving


def demo(
    minutes: Annotated[
        float | None, typer.Option(help="Train this long; the recipes' time unless given.", min=0.1)
    ] = None,
    questions: Annotated[int, typer.Option(help="Held-out problems to ask.", min=1)] = 100,
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Port to serve on; 0 takes a free one.", min=0, max=65535)] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run trained.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
) -> None:
    """Train a small bilingual VAETKI, convert it, verify it, serve it and ask it held-out questions.

    What it trains is kept under `$TRILLION_SERVE_HOME/demo` and reused.

    Example: `trillion-serve demo --keep --port 8000`
    """
    import shutil
    from importlib.metadata import version

    from openai import OpenAI
    from rich.console import Console

    from trillion_serve.demo.conversation import ask_aloud, sample_questions
    from trillion_serve.demo.server import ServerProcess
    from trillion_serve.demo.stages import demo_stages, run_stages
    from trillion_serve.home import home

    console = Console(highlight=False)
    folder = home() / "demo"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    stages = run_stages(demo_stages(folder, minutes), folder, version("trillion-serve"), console.out)
    held_out = folder / "data" / "heldout.jsonl"
    console.out(f"Serving {folder / 'hf'}")
    with ServerProcess(folder / "hf", port, SERVE_OPTIONS, folder / "server.log") as server:
        client = OpenAI(base_url=server.url, api_key="none")
        model = client.models.list().data[0].id
        asked = [(question, True) for question in sample_questions(held_out, 2)]
        asked += [(question, False) for question in sample_questions(held_out, 1)]
        exchanges = [ask_aloud(client, model, q, console, thinking=thinking) for q, thinking in asked]
        evaluation = _evaluate(server.url, held_out, questions, folder / "evaluation.json")
        results = {
            "stages": {stage.name: {"seconds": stage.seconds, "reused": stage.reused} for stage in stages},
            "verify": json.loads((folder / "verify.json").read_text(encoding="utf-8")),
            "kv_cache": {"engine": server.capacity, **_kv_bytes(folder / "hf")},
            "exchanges": [exchange.as_dict() for exchange in exchanges],
            "evaluation": {name: evaluation[name] for name in ("accuracy", "tokens_per_second", "problems")},
        }
        _report(console, results, stages)
        if json_file:
            json_file.write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        if keep:
            console.out(f"Serving at {server.url} until Ctrl-C; talk to it: trillion-serve chat --url {server.url}")
            server.wait()


def _evaluate(url: str, held_out: Path, questions: int, out: Path) -> dict[str, Any]:
    """Ask held-out problems through the served API; the command prints its own table."""
    from trillion_serve.demo.stages import argv
    from trillion_serve.errors import DemoError

    command = ["trillion-train", "eval", "--url", url, "--data", str(held_out)]
    command += ["--limit", str(questions), "--json", str(out)]
    if subprocess.run(argv(command), check=False).returncode != 0:
        raise DemoError("the held-out problems could not be asked; the reason stands above")
    return json.loads(out.read_text(encoding="utf-8"))


def _kv_bytes(model: Path) -> dict[str, float]:
    """KV-cache bytes that a token costs in one layer in float32: as we store it, and with every head's keys and
    values."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    latent = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    head_dim = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    expanded = config["num_attention_heads"] * 2 * head_dim
    return {"latent_bytes": 4 * latent, "expanded_bytes": 4 * expanded, "window": config["sliding_window"]}


def _report(console: Any, results: dict[str, Any], stages: "list[StageResult]") -> None:
    from trillion_serve.demo.stages import TRAINING

    training = sum(stage.seconds for stage in stages if stage.name in TRAINING)
    evaluation, kv = results["evaluation"], results["kv_cache"]
    console.out(f"training   {training:.0f} s")
    console.out(f"engine     {kv['engine']}")
    console.out(
        f"KV cache   {kv['latent_bytes']} bytes a token a layer, the last {kv['window']} tokens only on local layers "
        f"(every head's keys and values would take {kv['expanded_bytes']})"
    )
    console.out(f"speed      {evaluation['tokens_per_second']:.0f} tokens/s over the API")
