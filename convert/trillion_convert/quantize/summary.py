"""What a quantisation did, in words."""

from pathlib import Path

from trillion_convert.quantize.directory import QuantizeReport
from trillion_convert.quantize.recipe import Recipe


def render(target: Path, recipe: Recipe, report: QuantizeReport) -> str:
    """The lines to print."""
    written, share = report.written, report.written.nbytes / report.source_bytes
    return "\n".join(
        [
            f"{target}: {report.quantized} weights quantised as {recipe.scheme}, {report.kept} tensors kept; "
            f"{written.nbytes:,} bytes of weights in {written.files} file(s), {share:.2f} of the source's",
            _errors(report),
            _loss(report),
        ]
    )


def _errors(report: QuantizeReport) -> str:
    if not report.errors.of:
        return "relative error of the weights: not known, an earlier run had quantised them all"
    name, worst = report.errors.worst
    seen = len(report.errors.of)
    which = "" if seen == report.quantized else f" of the {seen} that this run quantised"
    return f"relative error of the weights{which}: {report.errors.mean:.4f}, at most {worst:.4f}, in {name}"


def _loss(report: QuantizeReport) -> str:
    if report.before is None or report.after is None:
        return "loss: not measured, which takes a text (--text FILE); errors of weights do not tell those of answers"
    before, after = report.before, report.after
    return (
        f"loss on {before.tokens:,} tokens: {before.mean:.4f} nats a token before, {after.mean:.4f} after "
        f"({after.mean - before.mean:+.4f}); perplexity {before.perplexity:.3f} before, {after.perplexity:.3f} after"
    )
