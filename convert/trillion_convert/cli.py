"""``trillion-convert``: export, verify, inspect and validate models."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trillion_model.errors import TrillionError

app = typer.Typer(
    name="trillion-convert",
    help="Convert models between training checkpoints and Hugging Face directories, compare forms, count sizes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """Dtypes of weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Training checkpoint, or a run's directory.")],
    target: Annotated[Path, typer.Argument(help="Directory to make.")],
    dtype: Annotated[Dtype | None, typer.Option(help="Dtype of the weights; as trained when left out.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of a weight file.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a training checkpoint as a Hugging Face directory, in the published names.

    Example: `trillion-convert export runs/sft models/my-vaetki --dtype bfloat16`
    """
    from trillion_convert.export import export as run
    from trillion_convert.progress import byte_bar

    with byte_bar(f"exporting {target.name}") as on_bytes:
        report = run(source, target, dtype=dtype, max_shard_size=max_shard_size, force=force, on_bytes=on_bytes)
    print(f"{target}: {report.tensors} tensors in {report.files} file(s), {report.nbytes:,} bytes of weights")


@app.command()
def verify(
    a: Annotated[str, typer.Argument(help="FORM:PATH (train, hf or vllm), or a path whose form is seen there.")],
    b: Annotated[str, typer.Argument(help="The other, in the same way.")],
    prompts: Annotated[Path | None, typer.Option(help="More prompts: .jsonl, or a line of text each.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate a prompt.")] = 32,
    dtype: Annotated[Dtype, typer.Option(help="Dtype that both run in.")] = Dtype.FLOAT32,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Largest log-probability difference; 1e-4 in float32, 0.1 in float16, 0.5 in bfloat16."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """Compare two forms of a model on the same prompts; exit code 1 when they disagree.

    Example: `trillion-convert verify train:runs/sft vllm:models/my-vaetki`
    """
    from trillion_convert.progress import spinner
    from trillion_convert.verify.forms import Target
    from trillion_convert.verify.run import VerifyOptions, render
    from trillion_convert.verify.run import verify as run

    options = VerifyOptions(prompts, max_tokens, dtype.value, tolerance)
    with spinner("reading checkpoints") as on_step:
        report = run(Target.parse(a), Target.parse(b), options, on_step)
    if json_file:
        json_file.write_text(report.to_json() + "\n", encoding="utf-8")
    render(report)
    if not report.agree:
        raise typer.Exit(1)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Preset name or directory.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Count parameters, bytes and KV cache, from the modelling code and without any weights.

    Example: `trillion-convert inspect vaetki-100b-a10b`
    """
    from trillion_convert.inspection import inspect_model, render

    inspection = inspect_model(model)
    if json_file:
        json_file.write_text(inspection.to_json() + "\n", encoding="utf-8")
    render(inspection)


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(help="Training checkpoint or Hugging Face directory.")],
) -> None:
    """Hold names, shapes, dtypes, index, configuration and tokenizer of a checkpoint against each other.

    Example: `trillion-convert validate models/my-vaetki`
    """
    from trillion_convert.validation import validate as run

    checkpoint = run(path)
    print(f"{checkpoint.directory}: {len(checkpoint.tensors)} tensors fit the configuration ({checkpoint.form} form)")


def main() -> None:
    """Run the command line; an error of ours is one line and exit code 1."""
    try:
        app()
    except TrillionError as error:
        print(f"trillion-convert: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
