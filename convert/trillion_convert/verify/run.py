"""A whole comparison: checkpoints opened, prompts made, one form run after the other, the outcome as a table."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from trillion_convert.checkpoint import Checkpoint, open_checkpoint
from trillion_convert.errors import PromptError
from trillion_convert.tokenizer import check_tokenizer
from trillion_convert.verify.compare import Report, compare, record
from trillion_convert.verify.forms import RunForm, Target
from trillion_convert.verify.prompts import Prompt, collect
from trillion_convert.verify.runner import Runner

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.5, "float16": 0.1}
"""Largest difference in log-probability that is still rounding, by the dtype that both forms run in.

In half precision a token can be routed to another expert by rounding alone, hence the width there.
"""


@dataclass(frozen=True)
class VerifyOptions:
    """How to compare.

    Attributes:
        prompts: a file of further prompts.
        max_tokens: tokens to generate a prompt.
        dtype: name of the dtype that both forms run in.
        tolerance: in log-probability; None is the dtype's in :data:`TOLERANCES`.
    """

    prompts: Path | None = None
    max_tokens: int = 32
    dtype: str = "float32"
    tolerance: float | None = None


def verify(a: Target, b: Target, options: VerifyOptions, on_step: Callable[[str], None] = lambda text: None) -> Report:
    """Compare two forms; only one of them is loaded at a time.

    Raises:
        CheckpointError: a directory is damaged.
        PromptError: the prompts cannot be used, or the two tokenizers make different tokens of them.
        RunError: a form cannot be run.
    """
    checkpoints = [open_checkpoint(side.path, side.form.checkpoint_form) for side in (a, b)]
    prompts = _prompts(checkpoints, options)
    tolerance = TOLERANCES[options.dtype] if options.tolerance is None else options.tolerance
    longest = max(len(prompt.token_ids) for prompt in prompts) + options.max_tokens

    def load(side: Target, checkpoint: Checkpoint) -> Runner:
        on_step(f"loading {side}")
        runner = load_runner(side, checkpoint, options.dtype, longest)
        on_step(f"running {side}")
        return runner

    with closing(load(a, checkpoints[0])) as runner:
        recordings = record(runner, prompts, options.max_tokens)
    with closing(load(b, checkpoints[1])) as runner:
        results = compare(runner, recordings, options.max_tokens, tolerance)
    return Report(str(a), str(b), options.dtype, tolerance, tuple(results))


def _prompts(checkpoints: list[Checkpoint], options: VerifyOptions) -> list[Prompt]:
    first, second = (
        collect(check_tokenizer(checkpoint), checkpoint.architecture.config, options.prompts, options.max_tokens)
        for checkpoint in checkpoints
    )
    for a, b in zip(first, second, strict=False):
        if a.name == b.name and a != b:
            raise PromptError(f"{a.name}: the two tokenizers or chat templates make different tokens of it")
    return first


def load_runner(side: Target, checkpoint: Checkpoint, dtype: str, longest: int) -> Runner:
    """Load one side.

    Args:
        side: how to run it.
        checkpoint: its directory, opened.
        dtype: name of the dtype to run in.
        longest: tokens of the longest prompt with its continuation.

    Raises:
        RunError: it cannot be run.
    """
    from transformers.utils import logging

    from trillion_convert.verify.torch_runner import TorchRunner
    from trillion_convert.verify.vllm_runner import VllmRunner

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if side.form is not RunForm.VLLM:
        return TorchRunner(checkpoint, dtype)
    # The engine refuses a prompt that fills its context, and a score generates one token more.
    return VllmRunner(checkpoint, dtype, longest + 1)


def render(report: Report) -> None:
    """Print a report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.a} and {report.b} in {report.dtype}", title_justify="left")
    table.add_column("prompt", no_wrap=True)
    for heading in ("tokens", "generated", "same tokens", "difference", "relative", "at"):
        table.add_column(heading, justify="right")
    for result in report.prompts:
        ties = f"yes, {len(result.ties)} tied" if result.ties else "yes"
        table.add_row(
            result.name,
            str(result.prompt_tokens),
            str(result.generated_tokens),
            ties if result.mismatch_at is None else f"NO, from {result.mismatch_at}",
            f"{result.max_logprob_difference:.1e}",
            f"{result.max_relative_difference:.1e}",
            str(result.worst_at),
        )
    console = Console()
    console.print(table)
    console.print(
        f"{'agree' if report.agree else 'DISAGREE'}: {report.token_mismatches} token mismatches; largest "
        f"log-probability difference {report.max_logprob_difference:.2e}, relative "
        f"{report.max_relative_difference:.2e} (tolerance {report.tolerance:g})",
        soft_wrap=True,
    )
