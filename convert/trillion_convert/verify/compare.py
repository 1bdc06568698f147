"""Two forms held against each other: greedily through their caches, then on given tokens in one pass.

Rounding grows with the logits, so a difference in a log-probability below -1 is held against the tolerance relative
to it: a token that the model gives e^-30 may differ by thirty times as much as one that it expects.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trillion_convert.verify.prompts import Prompt
from trillion_convert.verify.runner import Continuation, Request, Runner


@dataclass(frozen=True)
class Recording:
    """What one form did with a prompt: its continuation, and log-probabilities of prompt and continuation."""

    prompt: Prompt
    continuation: Continuation
    logprobs: tuple[float, ...]

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and continuation."""
        return self.prompt.token_ids + self.continuation.token_ids


@dataclass(frozen=True)
class PromptResult:
    """How two forms compare on a prompt.

    Attributes:
        name: the prompt's.
        prompt_tokens, generated_tokens: their numbers; the first form's.
        mismatch_at: first generated token that differs, or None.
        ties: generated tokens that differ where the best two were within the tolerance; the second form was put
            back on the first one's tokens after each.
        max_logprob_difference: over prompt and continuation, both forms reading the first one's tokens; nan when a
            form gives no number.
        max_relative_difference: the same, each divided by its log-probability where that is below -1.
        worst_at: the token where the latter is, counted from the start of the prompt.
    """

    name: str
    prompt_tokens: int
    generated_tokens: int
    mismatch_at: int | None
    ties: tuple[int, ...]
    max_logprob_difference: float
    max_relative_difference: float
    worst_at: int


@dataclass(frozen=True)
class Report:
    """The outcome of a comparison; ``tolerance`` is in log-probability."""

    a: str
    b: str
    dtype: str
    tolerance: float
    prompts: tuple[PromptResult, ...]

    @property
    def token_mismatches(self) -> int:
        """Prompts that are continued differently, ties aside."""
        return sum(result.mismatch_at is not None for result in self.prompts)

    @property
    def max_logprob_difference(self) -> float:
        """The largest over all prompts; nan when any is."""
        return _largest([result.max_logprob_difference for result in self.prompts])

    @property
    def max_relative_difference(self) -> float:
        """The largest over all prompts; nan when any is."""
        return _largest([result.max_relative_difference for result in self.prompts])

    @property
    def agree(self) -> bool:
        """Whether no token differs, and no log-probability by more than the tolerance."""
        return self.token_mismatches == 0 and self.max_relative_difference <= self.tolerance

    def to_json(self) -> str:
        """Everything, the outcome first."""
        outcome = {
            "agree": self.agree,
            "token_mismatches": self.token_mismatches,
            "ties": sum(len(result.ties) for result in self.prompts),
            "max_logprob_difference": self.max_logprob_difference,
            "max_relative_difference": self.max_relative_difference,
        }
        return json.dumps(_without_nan(outcome | asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)


def record(runner: Runner, prompts: Sequence[Prompt], max_tokens: int) -> list[Recording]:
    """Run the first form."""
    continuations = runner.greedy([Request(prompt.token_ids, max_tokens) for prompt in prompts])
    sequences = [p.token_ids + c.token_ids for p, c in zip(prompts, continuations, strict=True)]
    scores = runner.score(sequences)
    return [Recording(p, c, tuple(s)) for p, c, s in zip(prompts, continuations, scores, strict=True)]


def compare(runner: Runner, recordings: Sequence[Recording], max_tokens: int, tolerance: float) -> list[PromptResult]:
    """Run the second form and hold it against what the first did."""
    return [
        replace(_difference(recording, score), mismatch_at=mismatch, ties=ties)
        for recording, score, (mismatch, ties) in zip(
            recordings,
            runner.score([recording.sequence for recording in recordings]),
            _follow(runner, recordings, max_tokens, tolerance),
            strict=True,
        )
    ]


def _difference(recording: Recording, score: Sequence[float]) -> PromptResult:
    differences = [abs(a - b) for a, b in zip(recording.logprobs, score, strict=True)]
    relative = [d / max(1.0, abs(a)) for d, a in zip(differences, recording.logprobs, strict=True)]
    worst = _largest(relative)
    return PromptResult(
        recording.prompt.name,
        len(recording.prompt.token_ids),
        len(recording.continuation.token_ids),
        mismatch_at=None,
        ties=(),
        max_logprob_difference=_largest(differences),
        max_relative_difference=worst,
        worst_at=1 + next(i for i, value in enumerate(relative) if value == worst or math.isnan(value)),
    )


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


def _without_nan(value: Any) -> Any:
    """JSON has no nan: null stands for it."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _follow(
    runner: Runner, recordings: Sequence[Recording], max_tokens: int, tolerance: float
) -> list[tuple[int | None, tuple[int, ...]]]:
    """Continue every prompt greedily; where it leaves the recording at a tie, put it back on it and go on."""
    ties: list[list[int]] = [[] for _ in recordings]
    mismatches: list[int | None] = [None] * len(recordings)
    done = [0] * len(recordings)
    pending = list(range(len(recordings)))
    while pending:
        requests = [
            Request(
                recordings[i].prompt.token_ids + recordings[i].continuation.token_ids[: done[i]], max_tokens - done[i]
            )
            for i in pending
        ]
        tied = []
        for i, got in zip(pending, runner.greedy(requests), strict=True):
            expected = recordings[i].continuation
            at = _first_difference(expected.token_ids[done[i] :], got.token_ids)
            if at is None:
                continue
            margin = min(expected.margins[done[i] + at], got.margins[at])
            done[i] += at
            if margin > tolerance:
                mismatches[i] = done[i]
                continue
            ties[i].append(done[i])
            done[i] += 1
            if done[i] < len(expected.token_ids):
                tied.append(i)
        pending = tied
    return list(zip(mismatches, map(tuple, ties), strict=True))


def _first_difference(expected: Sequence[int], got: Sequence[int]) -> int | None:
    """Index of the first token that differs; both stop at end tokens, so neither is the beginning of the other."""
    return next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
