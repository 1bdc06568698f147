"""``trillion-serve demo``: train a small VAETKI, convert it, verify it, serve it and talk to it."""

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trillion_model.output_files import check_output, write_output

if TYPE_CHECKING:
    from trillion_serve.demo.server import ServerProcess
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
    json_file: Annotated[
        Path | None, typer.Option("--json", callback=check_output, help="Also write the results to this file.")
    ] = None,
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
            "kv_cache": _kv_cache(folder / "hf", server),
            "exchanges": [exchange.as_dict() for exchange in exchanges],
            "evaluation": {name: evaluation[name] for name in ("accuracy", "tokens_per_second", "problems")},
        }
        _report(console, results, stages)
        if json_file:
            write_output(json_file, json.dumps(results, ensure_ascii=False, indent=2))
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


def _kv_cache(model: Path, server: "ServerProcess") -> dict[str, Any]:
    """What the served model's KV cache costs and holds, in the engine's own words where it has any."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    said = [line for line in server.log.read_text(encoding="utf-8").splitlines() if "The KV cache holds" in line]
    return {
        "engine": server.capacity,
        "against_no_windows": said[-1][said[-1].index("The KV cache holds") :] if said else None,
        "float32_bytes_a_token_a_layer": 4 * (config["kv_lora_rank"] + config["qk_rope_head_dim"]),
        "sliding_window": config["sliding_window"],
        "local_layers": config["layer_types"].count("sliding_attention"),
        "global_layers": config["layer_types"].count("full_attention"),
    }


def _report(console: Any, results: dict[str, Any], stages: "list[StageResult]") -> None:
    from trillion_serve.demo.stages import TRAINING

    training = sum(stage.seconds for stage in stages if stage.name in TRAINING)
    evaluation, kv, verify = results["evaluation"], results["kv_cache"], results["verify"]
    console.out(f"training   {training:.0f} s")
    console.out(
        f"verify     {verify['token_mismatches']} token mismatches between Transformers and vLLM in {verify['dtype']}, "
        f"largest log-probability difference {verify['max_logprob_difference']:.1e}"
    )
    console.out(f"engine     {kv['engine']}")
    console.out(
        f"KV cache   {kv['float32_bytes_a_token_a_layer']} bytes a token a layer: all tokens on {kv['global_layers']} "
        f"global layer, the last {kv['sliding_window']} on {kv['local_layers']} local ones"
    )
    if kv["against_no_windows"]:
        console.out(f"           {kv['against_no_windows']}")
    console.out(f"speed      {evaluation['tokens_per_second']:.0f} tokens/s over the API")
