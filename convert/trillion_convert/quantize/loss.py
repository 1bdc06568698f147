"""What quantisation costs on a text: the mean loss of the plain model, on its own weights and on dequantised ones."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trillion_convert.verify.runner import Runner

WINDOW_TOKENS = 1024
"""Longer texts are read in pieces of this many tokens, or of the model's context where that is shorter."""


@dataclass(frozen=True)
class Loss:
    """Negative log-probability in nats over so many predicted tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """e to the power of the mean."""
        return math.exp(self.mean)


def read_pieces(file: Path, tokenizer: "PreTrainedTokenizerBase", context: int) -> list[tuple[int, ...]]:
    """The tokens of a text, in pieces that a model can read at once.

    Args:
        file: lines of text, or ``.jsonl`` with an object with ``text`` a line; each line is a text of its own.
        tokenizer: the model's.
        context: most tokens of a sequence.

    Raises:
        PromptError: it cannot be read, a line is malformed, or it has nothing to predict.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{file} cannot be read: {error}") from error
    size = min(WINDOW_TOKENS, context)
    pieces = []
    for number, line in enumerate(lines, start=1):
        text = _text(line, f"{file}:{number}") if file.suffix == ".jsonl" and line.strip() else line
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces += [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise PromptError(f"{file} holds no line of two tokens or more")
    return pieces


def measure(runner: "Runner", pieces: Sequence[tuple[int, ...]]) -> Loss:
    """The loss of a model on every token of each piece but its first."""
    scores = runner.score(pieces)
    return Loss(-sum(map(sum, scores)), sum(map(len, scores)))


def _text(line: str, where: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise PromptError(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise PromptError(f'{where}: expected an object with "text"')
    return fields["text"]
