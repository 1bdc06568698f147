"""Compares a server's answers with a plain reference.

The server chooses the tokens and the reference scores them, so that one early difference does not hide the rest.
"""

from collections.abc import Callable

import torch

from support.sglang_server import Answer

Reference = Callable[[torch.Tensor], torch.Tensor]
"""Logits (seq, vocab) of a sequence (seq,)."""

NEW_TOKENS = 24


def random_prompts(lengths: list[int], seed: int = 1) -> list[list[int]]:
    """Prompts of ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(20, 400, (n,), generator=generator).tolist() for n in lengths]


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
