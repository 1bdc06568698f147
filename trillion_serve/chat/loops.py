"""Tells when a model repeats itself without end.

A loop is a cycle of tokens that comes again and again, exactly, or but for a number or a word that changes each
time, perhaps in its length. To see one as it grows, each token is compared with the one a cycle before. The length
of the cycle is the distance to where the last few tokens stood before, and it is taken anew where a changed
word has shifted the rest.
"""

from collections import deque
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

_GRAM = 3
"""Tokens that show, when they come again, where a cycle may have begun."""
_GRACE = 12.0
"""Score of a cycle that was just found: it may differ twice before it is given up."""


@dataclass(frozen=True)
class LoopConfig:
    """What counts as a loop: so many cycles, and so many tokens in all of them together.

    Attributes:
        repeats: cycles that are exactly the same, the first one among them.
        min_tokens: tokens in those.
        near_repeats: cycles that are nearly the same.
        near_min_tokens: tokens in those.
        similarity: share of tokens that are the same as a cycle before, in cycles that are nearly the same.
        max_period: longest cycle that is looked for, in tokens.
    """

    repeats: Annotated[int, Field(ge=2)]
    min_tokens: Annotated[int, Field(ge=1)]
    near_repeats: Annotated[int, Field(ge=2)]
    near_min_tokens: Annotated[int, Field(ge=1)]
    similarity: Annotated[float, Field(gt=0, lt=1)]
    max_period: Annotated[int, Field(ge=1)] = 512


REASONING_LOOPS = LoopConfig(repeats=4, min_tokens=256, near_repeats=16, near_min_tokens=1024, similarity=0.9)
CONTENT_LOOPS = LoopConfig(repeats=6, min_tokens=1024, near_repeats=64, near_min_tokens=4096, similarity=0.92)
"""An answer may have to repeat itself, as a long table does: it is left alone for longer."""


class LoopDetector:
    """Watches tokens one at a time. What it remembers is bounded by the longest cycle."""

    def __init__(self, config: LoopConfig) -> None:
        self._config = config
        self._penalty = config.similarity / (1 - config.similarity)
        self._tokens: deque[int] = deque(maxlen=config.max_period + 1)
        self._grams: deque[tuple[int, int, int]] = deque(maxlen=config.max_period + 1)
        self._last: dict[tuple[int, int, int], int] = {}
        self._gram = (-1, -1, -1)
        self._here = 0
        self._cycle = self._same = self._period = 0
        self._forget()

    def feed(self, token_id: int) -> bool:
        """Read a token; true when it completes a loop."""
        self._here += 1
        self._tokens.append(token_id)
        distance = self._distance(token_id)
        # A cycle may hold shorter ones that are nearly the same: the exact one is followed on its own.
        if self._cycle and self._tokens[-1 - self._cycle] == token_id:
            self._same += 1
        else:
            self._cycle, self._same = distance, _GRAM
        if self._period:
            self._compare(token_id, distance)
        elif distance:
            self._period, self._span, self._score = distance, _GRAM, _GRACE
        return self._is_loop()

    def _distance(self, token_id: int) -> int:
        """Tokens since the last ones stood here in the same order; 0 if they did not, or too long ago."""
        self._gram = gram = (self._gram[1], self._gram[2], token_id)
        here, last, grams = self._here, self._last, self._grams
        if len(grams) == grams.maxlen and last[oldest := grams[0]] == here - len(grams):
            del last[oldest]
        before = last.get(gram, 0)
        last[gram] = here
        grams.append(gram)
        return here - before if before else 0

    def _compare(self, token_id: int, distance: int) -> None:
        """Follow the cycle by a token."""
        self._span += 1
        if self._tokens[-1 - self._period] == token_id:
            self._lost = 0
            self._score = min(self._score + 1, self._most)
        elif distance and abs(distance - self._period) <= max(_GRAM + 1, self._period // 4):
            # A changed word has shifted the cycle: what seemed to differ since was only out of place.
            self._score += 1 + min(self._lost, _GRAM - 1) * (self._penalty + 1)
            self._period, self._lost = distance, 0
        else:
            self._lost += 1
            self._score -= self._penalty
            if self._score < 0:
                self._forget()

    def _is_loop(self) -> bool:
        config, cycle, period = self._config, self._cycle, self._period
        exact = cycle and self._same + cycle >= max(config.min_tokens, config.repeats * cycle)
        near = period and self._span + period >= max(config.near_min_tokens, config.near_repeats * period)
        return bool(exact or near)

    def _forget(self) -> None:
        self._period = self._span = self._lost = 0
        self._score = 0.0

    @property
    def _most(self) -> float:
        # Half a cycle of something else, or a few words in a short one, and it is no longer a loop.
        return max(8 * self._penalty, self._period * self._penalty / 2)
