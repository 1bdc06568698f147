"""What a comparison asks of a form: greedy tokens and the log-probabilities of given ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """A prompt to continue by at most ``max_tokens``."""

    token_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Continuation:
    """What greedy decoding gave, its end token included.

    Attributes:
        token_ids: the tokens.
        margins: for each, by how much its log-probability exceeds the runner-up's.
        logprobs: for each, its log-probability.
    """

    token_ids: tuple[int, ...]
    margins: tuple[float, ...]
    logprobs: tuple[float, ...] = ()


class Runner(Protocol):
    """A form of a model, loaded."""

    def greedy(self, requests: Sequence[Request]) -> list[Continuation]:
        """Continue each prompt through the cache, up to an end token."""

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Log-probability of each token given those before it, from the second on."""

    def close(self) -> None:
        """Free what the model holds."""
