"""A whole comparison: checkpoints opened, prompts made, one form run after the other, the outcome as a table."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from trillion_convert.checkpoint import Checkpoint, open_checkpoint
from trillion_convert.errors import PromptError, RunError
from trillion_convert.quantize.recipe import Scheme
from trillion_convert.tokenizer import check_tokenizer
from trillion_convert.verify.compare import Report, compare, record
from trillion_convert.verify.forms import RunForm, Target
from trillion_convert.verify.prompts import Prompt, collect
from trillion_convert.verify.runner import Runner

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.5, "float16": 0.1}
"""Largest difference in log-probability that is still rounding, by the dtype that both forms run in.

In half precision a token can be routed to another expert by rounding alone, hence the width there.
"""

QUANTIZED_TOLERANCES = {Scheme.FP8_DYNAMIC: 1.0, Scheme.INT8_W8A8: 1.0, Scheme.INT4_W4A16: 3.0}
"""The same where a directory is quantised: what is lost is no rounding, and a token that was close may change."""


@dataclass(frozen=True)
class VerifyOptions:
    """How to compare.

    Attributes:
        prompts: a file of further prompts.
        max_tokens: tokens to generate a prompt.
        dtype: name of the dtype that both forms run in.
        tolerance: in log-probability; None is the dtype's in :data:`TOLERANCES`, or that of
            :data:`QUANTIZED_TOLERANCES` where a directory is quantised.
        remote_code: run ``hf`` directories in the modelling code that lies in them, not in ours.
    """

    prompts: Path | None = None
    max_tokens: int = 32
    dtype: str = "float32"
    tolerance: float | None = None
    remote_code: bool = False


def verify(a: Target, b: Target, options: VerifyOptions, on_step: Callable[[str], None] = lambda text: None) -> Report:
    """Compare two forms; only one of them is loaded at a time.

    Prompts and end tokens of a server are those of the directory that it is compared with.

    Raises:
        CheckpointError: a directory is damaged.
        PromptError: the prompts cannot be used, or the two tokenizers make different tokens of them.
        RunError: a form cannot be run.
    """
    opened = [None if side.url else open_checkpoint(Path(side.path), side.form.checkpoint_form) for side in (a, b)]
    directories = [checkpoint for checkpoint in opened if checkpoint is not None]
    if not directories:
        raise RunError("two servers cannot be compared without a directory; give one side as hf:DIR or vllm:DIR")
    prompts = _prompts(directories, options)
    tolerance = _tolerance(directories, options) if options.tolerance is None else options.tolerance
    longest = max(len(prompt.token_ids) for prompt in prompts) + options.max_tokens

    def load(side: Target, checkpoint: Checkpoint | None) -> Runner:
        on_step(f"loading {side}")
        runner = load_runner(side, checkpoint or directories[0], options.dtype, longest, options.remote_code)
        on_step(f"running {side}")
        return runner

    with closing(load(a, opened[0])) as runner:
        recordings = record(runner, prompts, options.max_tokens)
    with closing(load(b, opened[1])) as runner:
        results = compare(runner, recordings, options.max_tokens, tolerance)
    return Report(str(a), str(b), options.dtype, tolerance, tuple(results))


def _tolerance(directories: list[Checkpoint], options: VerifyOptions) -> float:
    schemes = [checkpoint.recipe.scheme for checkpoint in directories if checkpoint.recipe is not None]
    return max([TOLERANCES[options.dtype], *(QUANTIZED_TOLERANCES[scheme] for scheme in schemes)])


def _prompts(directories: list[Checkpoint], options: VerifyOptions) -> list[Prompt]:
    first, second = (
        collect(check_tokenizer(checkpoint), checkpoint.architecture.config, options.prompts, options.max_tokens)
        for checkpoint in (directories[0], directories[-1])
    )
    for a, b in zip(first, second, strict=False):
        if a.name == b.name and a != b:
            raise PromptError(f"{a.name}: the two tokenizers or chat templates make different tokens of it")
    return first


def load_runner(side: Target, checkpoint: Checkpoint, dtype: str, longest: int, remote_code: bool = False) -> Runner:
    """Load one side.

    Args:
        side: how to run it.
        checkpoint: its directory, opened; for a server, the one that it is compared with.
        dtype: name of the dtype to run in.
        longest: tokens of the longest prompt with its continuation.
        remote_code: run ``hf`` directories in their own modelling code.

    Raises:
        RunError: it cannot be run.
    """
    from transformers.utils import logging

    from trillion_convert.verify.remote_code_runner import RemoteCodeRunner
    from trillion_convert.verify.server_runner import SglangServer, VllmServer
    from trillion_convert.verify.torch_runner import TorchRunner
    from trillion_convert.verify.vllm_runner import VllmRunner

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if side.url is not None:
        return (VllmServer if side.form is RunForm.VLLM else SglangServer)(side.url, checkpoint.ends)
    if side.form is RunForm.HF and remote_code:
        return RemoteCodeRunner(checkpoint, dtype)
    if side.form is not RunForm.VLLM:
        return TorchRunner(checkpoint, dtype)
    # The engine refuses a prompt that fills its context, and a score generates one token more.
    return VllmRunner(checkpoint.directory, checkpoint.ends, dtype, longest + 1)


def render(report: Report) -> None:
    """Print a report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.a} and {report.b} in {report.dtype}", title_justify="left")
    table.add_column("prompt", overflow="fold")
    for heading in ("tokens", "generated", "same tokens", "difference", "relative", "at"):
        table.add_column(heading, justify="right", overflow="fold")
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
