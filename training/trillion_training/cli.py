"""``trillion-train``: data, tokenizer, pretrain, sft, eval.

    trillion-train data demo --out data --seed 0
    trillion-train tokenizer --data data/tokenizer.jsonl --vocab-size 768 --out tokenizer
    trillion-train pretrain --recipe demo_pretrain --model vaetki-nano --tokenizer tokenizer \\
        --data data/pretrain.jsonl --out pretrained
    trillion-train sft --recipe demo_sft --base pretrained --data data/sft.jsonl --out tuned
    trillion-train eval --model tuned --data data/heldout.jsonl
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trillion_model.errors import TrillionError
from trillion_model.output_files import check_output, write_output

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Train Trillion and VAETKI models.")
data_app = typer.Typer(no_args_is_help=True, help="Make training data.")
app.add_typer(data_app, name="data")

Out = Annotated[Path, typer.Option(help="Directory to write to.")]
Data = Annotated[Path, typer.Option(help="A JSON-lines data file.")]
RecipeName = Annotated[str, typer.Option(help="A recipe that ships with us, or a YAML or JSON file.")]
Minutes = Annotated[float | None, typer.Option(help="Train this long instead of the recipe's time.")]
Steps = Annotated[int | None, typer.Option(help="Take at most so many steps.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights and order, instead of the recipe's.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any field of the recipe: optimizer.lr=0.001.")]
Resume = Annotated[bool, typer.Option(help="Go on with the run in --out, by the recipe it began with.")]


@data_app.command("demo", epilog="Example: trillion-train data demo --out data --seed 0")
def data_demo(
    out: Out,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 0,
    pretrain: Annotated[int, typer.Option(min=1, help="Text documents.")] = 10_000,
    sft: Annotated[int, typer.Option(min=1, help="Chats.")] = 24_000,
    held_out: Annotated[int, typer.Option(min=1, help="Problems to evaluate on.")] = 360,
) -> None:
    """Write the demo's bilingual, checkable skills: pretrain, sft, heldout and tokenizer .jsonl."""
    from trillion_training.data.demo.write import DemoSizes, write_demo

    counts = write_demo(out, seed, DemoSizes(pretrain=pretrain, sft=sft, held_out=held_out))
    for name, count in counts.items():
        typer.echo(f"{out / name}: {count} records")


@app.command(epilog="Example: trillion-train tokenizer --data data/tokenizer.jsonl --vocab-size 768 --out tokenizer")
def tokenizer(
    data: Data,
    out: Out,
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens in all, special ones and bytes included.")],
) -> None:
    """Train a byte-fallback BPE tokenizer on a text file and write its Hugging Face form, chat template included."""
    from trillion_training.data.jsonl import TextDocument, read_jsonl
    from trillion_training.tokenizer import SENTENCEPIECE_FILE, to_huggingface, train_sentencepiece

    texts = (document.text for document in read_jsonl(data, TextDocument))
    model = train_sentencepiece(texts, vocab_size)
    to_huggingface(model).save_pretrained(out)
    (out / SENTENCEPIECE_FILE).write_bytes(model)
    typer.echo(f"{out}: {vocab_size} tokens")


@app.command(
    epilog="Example: trillion-train pretrain --recipe demo_pretrain --model vaetki-nano --tokenizer tokenizer "
    "--data data/pretrain.jsonl --out pretrained"
)
def pretrain(
    data: Data,
    out: Out,
    recipe: RecipeName = "demo_pretrain",
    model: Annotated[
        str, typer.Option(help="Shape of the new model: a preset, or a directory with a configuration.")
    ] = "vaetki-nano",
    tokenizer: Annotated[Path | None, typer.Option(help="Directory of the tokenizer.")] = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Train a new model on text."""
    from trillion_training import stages

    if resume:
        typer.echo(stages.resume(out, data, "pretrain"))
        return
    if tokenizer is None:
        raise typer.BadParameter("needed for a new run", param_hint="--tokenizer")
    typer.echo(stages.pretrain(_recipe(recipe, minutes, steps, seed, set_), model, tokenizer, data, out))


@app.command(epilog="Example: trillion-train sft --recipe demo_sft --base pretrained --data data/sft.jsonl --out tuned")
def sft(
    data: Data,
    out: Out,
    recipe: RecipeName = "demo_sft",
    base: Annotated[Path | None, typer.Option(help="Run or checkpoint to start from.")] = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Fine-tune a model on chats, on the assistant's words only."""
    from trillion_training import stages

    if resume:
        typer.echo(stages.resume(out, data, "sft"))
        return
    if base is None:
        raise typer.BadParameter("needed for a new run", param_hint="--base")
    typer.echo(stages.sft(_recipe(recipe, minutes, steps, seed, set_), base, data, out))


@app.command("eval", epilog="Example: trillion-train eval --url http://127.0.0.1:8000/v1 --data data/heldout.jsonl")
def evaluate(
    data: Data,
    model: Annotated[Path | None, typer.Option(help="Run or checkpoint.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Instead of a model: base URL of an OpenAI-compatible server.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first so many problems only.")] = None,
    thinking: Annotated[bool, typer.Option(help="Let the model reason before it answers.")] = True,
    out: Annotated[
        Path | None, typer.Option("--json", callback=check_output, help="File for every answer and the accuracies.")
    ] = None,
) -> None:
    """Ask a model, in this process or served, held-out problems; print the share of right answers."""
    from itertools import islice

    from trillion_training.answers import report
    from trillion_training.data.jsonl import ProblemRecord, read_jsonl

    problems = list(islice(read_jsonl(data, ProblemRecord), limit))
    speed = None
    if url is not None and model is None:
        from trillion_training.evaluate_api import ask_api

        run = ask_api(url, problems, thinking=thinking)
        answers, speed = run.answers, run.tokens_per_second
    elif model is not None and url is None:
        from trillion_training import checkpoint
        from trillion_training.evaluate import ask

        folder = checkpoint.find(model)
        trained, tokenizer = checkpoint.load_model(folder), checkpoint.load_tokenizer(folder)
        answers = list(ask(trained, tokenizer, problems, thinking=thinking))
    else:
        raise typer.BadParameter("give one of them, not both", param_hint="--model, --url")
    result = report(answers, tokens_per_second=speed)
    typer.echo(result.table())
    if out is not None:
        write_output(out, json.dumps(result.as_dict(), ensure_ascii=False, indent=2))


def _recipe(
    name: str, minutes: float | None, steps: int | None, seed: int | None, assignments: list[str] | None
) -> Any:
    import yaml  # type: ignore[import-untyped]

    from trillion_training.config import load_recipe
    from trillion_training.errors import RecipeError

    overrides: dict[str, Any] = {"budget.minutes": minutes, "budget.steps": steps, "seed": seed}
    for assignment in assignments or []:
        field, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment} must be FIELD=VALUE, such as optimizer.lr=0.001")
        overrides[field] = yaml.safe_load(value)
    shipped = Path(__file__).with_name("recipes") / f"{name}.yaml"
    return load_recipe(shipped if shipped.is_file() else Path(name), overrides)


def main() -> None:
    """Run the command line; an error of ours is one line and exit code 1."""
    # Unbound OpenMP threads may be left on one core, where each waits out the other's time slices: training then loses
    # more than nine tenths of its speed. This is read when torch is first imported.
    os.environ.setdefault("OMP_PROC_BIND", "TRUE")
    try:
        app()
    except TrillionError as error:
        typer.echo(f"trillion-train: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
