"""Whether a request thinks, how long and for whom, and where its prompt ends and its reasoning begins."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from trillion_model.vaetki.chat_format import THINK_END, THINK_START
from trillion_serve.chat.language import Language
from trillion_serve.chat.loops import CONTENT_LOOPS, REASONING_LOOPS, LoopConfig

_Tokens = Annotated[int, Field(ge=1)]


def _without_think_tags(sentence: str) -> str:
    if THINK_START in sentence or THINK_END in sentence:
        raise ValueError(f"must not contain {THINK_START} or {THINK_END}: the closing tag follows by itself")
    return sentence


_Sentence = Annotated[str, AfterValidator(_without_think_tags)]

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


@dataclass(frozen=True, slots=True)
class ReasoningView:
    """What a client gets to see of reasoning. What it does not see is generated and counted all the same.

    Attributes:
        returned: it is sent at all.
        separate: it has a field of its own; else it stands in the content, between think tags.
        streamed: it is sent as it comes; else in one piece once it is whole.
    """

    returned: bool = True
    separate: bool = True
    streamed: bool = True


ALL_OF_IT = ReasoningView()


@dataclass(frozen=True, slots=True)
class ThinkingWish:
    """What a client asks of thinking, in whatever dialect it asked.

    Attributes:
        on: whether to think; None leaves it to the server and the model's template.
        budget: most tokens of reasoning, at least 1; None leaves it to ``effort``.
        effort: how hard to think; the server has a budget for each.
        view: what is sent of the reasoning.
        loops: whether to look for loops, in the reasoning and in the answer.
    """

    on: bool | None = None
    budget: int | None = None
    effort: Effort | None = None
    view: ReasoningView = ALL_OF_IT
    loops: bool = True


@dataclass(frozen=True, slots=True)
class EffortBudgets:
    """Most tokens of reasoning for each effort; None for as many as leave room for the answer."""

    minimal: _Tokens | None = 256
    low: _Tokens | None = 1024
    medium: _Tokens | None = 4096
    high: _Tokens | None = 16384
    xhigh: _Tokens | None = None
    max: _Tokens | None = None


@dataclass(frozen=True, slots=True)
class Transitions:
    """A sentence in each language that closes reasoning which is cut short; may be empty."""

    ko: _Sentence = "이제 생각을 마치고 지금까지의 내용으로 답하겠습니다."
    en: _Sentence = "I have thought enough, so I will answer with what I have."


@dataclass(frozen=True, slots=True)
class ThinkingSettings:
    """How a server handles thinking where a request leaves it open.

    Attributes:
        on: whether to think; None leaves it to the model's template.
        budget: most tokens of reasoning; None for as many as leave room for the answer.
        efforts: budgets of the efforts that clients name.
        transitions: what closes reasoning that is cut short.
        reserve: most tokens of ``max_tokens`` that are kept for the answer.
        reserve_share: the share of ``max_tokens`` that is kept, up to ``reserve``.
        reasoning_loops: what counts as a loop in reasoning; None looks for none.
        content_loops: what counts as a loop in the answer; None looks for none.
    """

    on: bool | None = None
    budget: _Tokens | None = None
    efforts: EffortBudgets = EffortBudgets()
    transitions: Transitions = Transitions()
    reserve: _Tokens = 256
    reserve_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    reasoning_loops: LoopConfig | None = REASONING_LOOPS
    content_loops: LoopConfig | None = CONTENT_LOOPS

    def thinks(self, wish: ThinkingWish) -> bool | None:
        """Whether to think; None leaves it to the model's template."""
        return self.on if wish.on is None else wish.on

    def budget_for(self, wish: ThinkingWish) -> int | None:
        """Most tokens of reasoning; None for as many as leave room for the answer."""
        if wish.budget is not None:
            return wish.budget
        if wish.effort is None or wish.effort == "none":
            return self.budget
        return getattr(self.efforts, wish.effort)

    def reserved(self, max_tokens: int) -> int:
        """Tokens of ``max_tokens`` that are kept for the answer, however long the model would like to think."""
        return max(1, min(self.reserve, int(max_tokens * self.reserve_share)))

    def transition(self, language: Language) -> str:
        """What closes reasoning that is cut short, for a user of this language."""
        return getattr(self.transitions, language)


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
