"""Compares an engine's answers with a plain reference.

The engine chooses the tokens and the reference scores them, so that one early difference does not hide the rest.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

import trillion_model

Reference = Callable[[torch.Tensor], torch.Tensor]
"""Logits (seq, vocab) of a sequence (seq,)."""


class Answer(Protocol):
    """What came back for a prompt."""

    @property
    def tokens(self) -> list[int]: ...

    @property
    def logprobs(self) -> list[float]:
        """Of each new token."""

    @property
    def prompt_logprobs(self) -> list[float]:
        """Of the prompt from its second token on, or none."""


def saved(model: PreTrainedModel, directory: Path) -> Path:
    """The directory, with the model in it as it is published."""
    trillion_model.register()
    model.save_pretrained(directory)
    return directory


def random_prompts(lengths: list[int], seed: int = 1, *, tokens: range = range(3, 320)) -> list[list[int]]:
    """Prompts of ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(tokens.start, tokens.stop, (n,), generator=generator).tolist() for n in lengths]


def compare(reference: Reference, prompts: list[list[int]], answers: list[Answer]) -> tuple[int, torch.Tensor]:
    """Tokens that the reference would not have chosen, and every log-probability's distance from the reference's."""
    mismatches, distances = 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(prompt + answer.tokens)
        expected = reference(ids).log_softmax(-1)[:-1]
        new = len(answer.tokens)
        mismatches += int((expected[-new:].argmax(-1) != ids[-new:]).sum())
        given = torch.tensor(answer.prompt_logprobs + answer.logprobs, dtype=torch.float64)
        scored = expected.gather(1, ids[1:, None])[:, 0]
        distances.append((given - scored[-len(given) :]).abs())
    return mismatches, torch.cat(distances)


def assert_agrees(reference: Reference, prompts: list[list[int]], answers: list[Answer]) -> None:
    """Assert that tokens are the same and log-probabilities within 1e-4."""
    mismatches, distances = compare(reference, prompts, answers)
    assert mismatches == 0
    assert distances.max() < 1e-4


@torch.no_grad()
def assert_as_close_as_plain_pytorch(
    model: PreTrainedModel, reference: Reference, prompts: list[list[int]], answers: list[Answer], bound: float
) -> None:
    """Assert that log-probabilities are nearly as close to an exact reference as those of the plain ``model``.

    Args:
        model: in the engine's dtype.
        reference: of the same weights, in a wider dtype.
        prompts, answers: the engine's.
        bound: of the mean distance.
    """
    engine, plain = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(prompt + answer.tokens)
        exact, rounded = (
            logits.double().log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
            for logits in (reference(ids), model(ids[None]).logits[0])
        )
        given = torch.tensor(answer.prompt_logprobs + answer.logprobs, dtype=torch.float64)
        engine.append((given - exact).abs())
        plain.append((rounded - exact).abs())
    distance, of_plain = torch.cat(engine).mean(), torch.cat(plain).mean()
    assert distance < bound
    assert distance < 1.25 * of_plain
