"""``trillion-convert``: export, import, merge, quantize, verify, inspect and validate models."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from trillion_model.errors import TrillionError
from trillion_model.output_files import check_output, write_output

if TYPE_CHECKING:
    from trillion_convert.streaming import Listener, Report

app = typer.Typer(
    name="trillion-convert",
    help="Convert models between training checkpoints and Hugging Face directories, compare forms, count sizes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """Dtypes of weights, in their long and their short spelling."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def full(self) -> str:
        """The long spelling, which is torch's."""
        return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(self.value, self.value)


TargetPath = Annotated[Path, typer.Argument(help="Directory to make.")]
WeightDtype = Annotated[Dtype | None, typer.Option(help="Dtype of the weights; as they are when left out.")]
MaxShardSize = Annotated[str, typer.Option(help="Most bytes of a weight file.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier directory.")]


class ExportForm(StrEnum):
    """Forms that ``export`` writes."""

    HF = "hf"
    MEGATRON = "megatron"


class ImportForm(StrEnum):
    """Forms that ``import`` reads."""

    HF = "hf"
    MEGATRON = "megatron"
    MEGATRON_STACKED = "megatron-stacked"


class ImportedForm(StrEnum):
    """Forms that ``import`` writes."""

    TRAIN = "train"
    HF = "hf"


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Training checkpoint, or a run's directory.")],
    target: TargetPath,
    to: Annotated[ExportForm, typer.Option(help="Form to write.")] = ExportForm.HF,
    dtype: WeightDtype = None,
    max_shard_size: MaxShardSize = "5GB",
    remote_code: Annotated[
        bool, typer.Option("--remote-code", help="Add modelling files, for Transformers without our package.")
    ] = False,
    force: Force = False,
) -> None:
    """Write a training checkpoint as a Hugging Face directory, in the published names.

    Example: `trillion-convert export runs/sft models/my-vaetki --dtype bf16 --remote-code`
    """
    from trillion_convert.export import export as run
    from trillion_convert.forms import Form

    with _listening(f"exporting {target.name}") as listener:
        report = run(
            source,
            target,
            to=Form(to),
            dtype=dtype and dtype.full,
            max_shard_size=max_shard_size,
            remote_code=remote_code,
            force=force,
            listener=listener,
        )
    _say_what_was_written(target, report)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="Published directory, or one in Megatron-Core's names.")],
    target: TargetPath,
    source_form: Annotated[ImportForm, typer.Option("--from", help="Form to read.")] = ImportForm.HF,
    to: Annotated[ImportedForm, typer.Option(help="Form to write.")] = ImportedForm.TRAIN,
    dtype: WeightDtype = None,
    max_shard_size: MaxShardSize = "5GB",
    force: Force = False,
) -> None:
    """Write a Hugging Face directory as a training checkpoint, to train on from.

    Example: `trillion-convert import models/my-vaetki runs/base --dtype fp32`
    """
    from trillion_convert.export import import_checkpoint as run
    from trillion_convert.forms import Form

    with _listening(f"importing {target.name}") as listener:
        report = run(
            source,
            target,
            source_form=Form(source_form),
            to=Form(to),
            dtype=dtype and dtype.full,
            max_shard_size=max_shard_size,
            force=force,
            listener=listener,
        )
    _say_what_was_written(target, report)


class _ManyWeights(TyperCommand):
    """Lets ``--weights`` take all the numbers that follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        after_weights = False
        for argument in args:
            if after_weights and _is_number(argument) and spread[-1] != "--weights":
                spread.append("--weights")
            after_weights = argument == "--weights" or (after_weights and _is_number(argument))
            spread.append(argument)
        return super().parse_args(ctx, spread)


@app.command(cls=_ManyWeights)
def merge(
    paths: Annotated[list[Path], typer.Argument(help="Checkpoints of one form, and last the directory to make.")],
    weights: Annotated[
        list[float] | None, typer.Option(help="A number a checkpoint, divided by their sum; equal when left out.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Dtype of the weights; the first's when left out.")] = None,
    max_shard_size: MaxShardSize = "5GB",
    force: Force = False,
) -> None:
    """Write the weighted mean of checkpoints of one architecture; sums are made in float32.

    Example: `trillion-convert merge models/a models/b models/soup --weights 0.5 0.5`
    """
    from trillion_convert.merge import merge as run

    *sources, target = paths
    with _listening(f"merging {target.name}") as listener:
        report = run(
            sources,
            target,
            weights=weights or None,
            dtype=dtype and dtype.full,
            max_shard_size=max_shard_size,
            force=force,
            listener=listener,
        )
    _say_what_was_written(target, report)


class Scheme(StrEnum):
    """How weights are quantised."""

    FP8_DYNAMIC = "fp8-dynamic"
    INT8_W8A8 = "int8-w8a8"
    INT4_W4A16 = "int4-w4a16"


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="Published directory.")],
    target: TargetPath,
    scheme: Annotated[Scheme, typer.Option(help="How weights, and for 8 bits activations, are quantised.")],
    group_size: Annotated[int, typer.Option(min=1, help="Numbers that share a scale; INT4 only.")] = 128,
    text: Annotated[
        Path | None, typer.Option(help="Measure the loss on this text: lines, or .jsonl with `text`.")
    ] = None,
    max_shard_size: MaxShardSize = "5GB",
    force: Force = False,
) -> None:
    """Quantise a published directory into compressed-tensors form, and say what that costs.

    Example: `trillion-convert quantize models/my-vaetki models/my-vaetki-fp8 --scheme fp8-dynamic --text notes.txt`
    """
    from trillion_convert.quantize import recipe
    from trillion_convert.quantize.directory import quantize as run
    from trillion_convert.quantize.summary import render

    chosen = recipe.Recipe(recipe.Scheme(scheme), group_size)
    with _listening(f"quantising {target.name}") as listener:
        report = run(source, target, chosen, text=text, max_shard_size=max_shard_size, force=force, listener=listener)
    print(render(target, chosen, report))


@app.command()
def verify(
    a: Annotated[
        str,
        typer.Argument(help="FORM:PATH (train, hf, megatron, vllm), FORM:URL (vllm, sglang), or a path (train or hf)."),
    ],
    b: Annotated[str, typer.Argument(help="The other, in the same way.")],
    prompts: Annotated[Path | None, typer.Option(help="More prompts: .jsonl, or a line of text each.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate a prompt.")] = 32,
    dtype: Annotated[Dtype, typer.Option(help="Dtype that both run in.")] = Dtype.FLOAT32,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest log-probability difference; 1e-4 in float32, 0.1 in float16, 0.5 in bfloat16, more for "
            "quantised directories.",
        ),
    ] = None,
    remote_code: Annotated[
        bool, typer.Option("--remote-code", help="Run hf directories in the modelling code that lies in them.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", callback=check_output, help="Also write the report to this file.")
    ] = None,
) -> None:
    """Compare two forms of a model on the same prompts; exit code 1 when they disagree.

    Example: `trillion-convert verify train:runs/sft vllm:models/my-vaetki`
    """
    from trillion_convert.progress import spinner
    from trillion_convert.verify.forms import Target
    from trillion_convert.verify.run import VerifyOptions, render
    from trillion_convert.verify.run import verify as run

    options = VerifyOptions(prompts, max_tokens, dtype.full, tolerance, remote_code)
    with spinner("reading checkpoints") as on_step:
        report = run(Target.parse(a), Target.parse(b), options, on_step)
    if json_file:
        write_output(json_file, report.to_json())
    render(report)
    if not report.agree:
        raise typer.Exit(1)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Preset name or directory.")],
    diff: Annotated[Path | None, typer.Option(help="Compare with this directory, tensor by tensor.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", callback=check_output, help="Also write the figures to this file.")
    ] = None,
) -> None:
    """Count parameters, bytes and KV cache, or say how two checkpoints differ.

    Example: `trillion-convert inspect vaetki-100b-a10b`
    """
    from trillion_convert import difference, inspection
    from trillion_convert.progress import spinner

    if diff is not None:
        with spinner("reading checkpoints") as on_tensor:
            found = difference.compare(Path(model), diff, on_tensor)
        render: Callable[[], None] = partial(difference.render, found)
        figures = found.to_json()
    else:
        sizes = inspection.inspect_model(model)
        render, figures = partial(inspection.render, sizes), sizes.to_json()
    if json_file:
        write_output(json_file, figures)
    render()


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(help="Training checkpoint, Hugging Face or Megatron-Core directory.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", callback=check_output, help="Also write the problems to this file.")
    ] = None,
) -> None:
    """Hold a checkpoint's files against each other and list every problem; exit code 1 when there is one.

    Example: `trillion-convert validate models/my-vaetki`
    """
    from trillion_convert.progress import byte_bar
    from trillion_convert.validation import render, survey

    with byte_bar(f"reading {path.name}") as on_bytes:
        found = survey(path, on_bytes=on_bytes)
    if json_file:
        write_output(json_file, found.to_json())
    render(found)
    if found.problems:
        raise typer.Exit(1)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextmanager
def _listening(title: str) -> "Iterator[Listener]":
    from trillion_convert.progress import byte_bar
    from trillion_convert.streaming import Listener

    with byte_bar(title) as on_bytes:
        yield Listener(on_bytes, lambda note: print(note, file=sys.stderr))


def _say_what_was_written(target: Path, report: "Report") -> None:
    print(f"{target}: {report.tensors} tensors in {report.files} file(s), {report.nbytes:,} bytes of weights")


def main() -> None:
    """Run the command line; an error of ours is one line and exit code 1."""
    gc.set_threshold(50_000)  # what importing Transformers makes stays, and looking it through again takes its time
    try:
        app()
    except TrillionError as error:
        print(f"trillion-convert: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
