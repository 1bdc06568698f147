"""Whether a request thinks, and where the boundary lies between its prompt and its reasoning."""

from dataclasses import dataclass
from enum import Enum

from trillion_model.vaetki.chat_format import THINK_END, THINK_START


class Opening(Enum):
    """Who writes the think tag that opens the answer."""

    PROMPT = "prompt"
    """The prompt ends inside an open think block: the answer begins with reasoning."""
    CLOSED = "closed"
    """The prompt ends after a think block that is already closed: there is no reasoning."""
    MODEL = "model"
    """The prompt says nothing: there is reasoning if the model's first word is the think tag."""


@dataclass(frozen=True, slots=True)
class ThinkingPlan:
    """How an answer begins.

    Attributes:
        opening: who opens the think block, read off the prompt as it was rendered.
        after_newline: the prompt ends in a newline, or another space that a tokenizer may double.
        newline_written: the prompt itself wrote the newline that follows the think tag.
    """

    opening: Opening
    after_newline: bool
    newline_written: bool


def plan_of(prompt: str) -> ThinkingPlan:
    """Read the plan off the end of a rendered prompt."""
    tail = prompt.rstrip()
    if tail.endswith(THINK_START):
        opening = Opening.PROMPT
    elif tail.endswith(THINK_END):
        opening = Opening.CLOSED
    else:
        opening = Opening.MODEL
    return ThinkingPlan(
        opening=opening,
        after_newline=prompt.endswith(("\n", "\t")),
        newline_written=opening is not Opening.MODEL and len(tail) < len(prompt),
    )


def close_thinking(prompt: str, *, model_thinks: bool) -> str:
    """The prompt with its thinking shut, whatever the template made of the request to leave it out.

    Args:
        prompt: as rendered, up to where the answer begins.
        model_thinks: the model has think tags, so that it may open a block of its own.
    """
    opening = plan_of(prompt).opening
    if opening is Opening.PROMPT:
        return prompt.rstrip() + f"\n\n{THINK_END}\n\n"
    if opening is Opening.MODEL and model_thinks:
        return prompt + f"{THINK_START}\n\n{THINK_END}\n\n"
    return prompt
