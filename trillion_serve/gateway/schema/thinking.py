"""Thinking in every dialect that clients speak, read into one wish.

Each field says something about one aspect or more (on or off, budget, what is sent). Fields that say the same
are welcome together; fields that disagree are refused by both their names.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from trillion_serve.chat.thinking import Effort, ReasoningView, ThinkingWish
from trillion_serve.gateway.schema.common import RequestModel

Budget = Annotated[int | None, Field(ge=-1)]
"""Tokens of reasoning; -1, as vLLM's users write it who want no limit, says nothing."""


class TemplateVariables(BaseModel):
    """Variables for the chat template, among them Qwen's and vLLM's switches for thinking."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    enable_thinking: bool | None = None
    thinking: bool | None = None
    thinking_budget: Budget = None


class Reasoning(RequestModel):
    """OpenRouter's object, of which the Responses API has a part."""

    effort: Effort | None = None
    max_tokens: Budget = None
    enabled: bool | None = None
    exclude: bool | None = None


class Thinking(RequestModel):
    """The object of Anthropic, DeepSeek and GLM. ``adaptive`` is on: how long is the model's affair."""

    type: Literal["enabled", "disabled", "adaptive"] | None = None
    budget_tokens: Budget = None


class _Claim(NamedTuple):
    """What one field says about one aspect. Texts say it for an error."""

    field: str
    aspect: Literal["on", "budget", "effort", "returned", "separate", "streamed"]
    value: Any


_SAYS = {
    ("on", True): "turns thinking on",
    ("on", False): "turns thinking off",
    ("returned", True): "asks for the reasoning",
    ("returned", False): "leaves the reasoning out",
    ("separate", True): "puts the reasoning into a field of its own",
    ("separate", False): "puts the reasoning into the content",
}


class ThinkingFields(RequestModel):
    """The fields about thinking."""

    chat_template_kwargs: TemplateVariables | None = None
    enable_thinking: bool | None = None
    thinking_budget: Budget = None
    thinking_token_budget: Budget = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    thinking: Thinking | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    stream_reasoning: bool | None = None
    reasoning_format: Literal["parsed", "raw", "hidden"] | None = None
    repetition_detection: bool | None = None

    @property
    def wish(self) -> ThinkingWish:
        """What all fields ask together."""
        said = {claim.aspect: claim.value for claim in self._claims()}
        return ThinkingWish(
            on=said.get("on"),
            budget=said.get("budget"),
            effort=said.get("effort"),
            view=ReasoningView(
                returned=said.get("returned", True),
                separate=said.get("separate", True),
                streamed=said.get("streamed", True),
            ),
            loops=self.repetition_detection is not False,
        )

    @property
    def template_variables(self) -> dict[str, Any]:
        """Variables for the chat template that have nothing to do with thinking."""
        return (self.chat_template_kwargs and self.chat_template_kwargs.model_extra) or {}

    @model_validator(mode="after")
    def _thinking_fields_agree(self) -> Self:
        first: dict[str, _Claim] = {}
        for claim in self._claims():
            other = first.setdefault(claim.aspect, claim)
            if other.value != claim.value:
                raise _contradiction(other, claim)
        hidden, tagged = first.get("returned"), first.get("separate")
        if hidden and tagged and not hidden.value and not tagged.value:
            raise _contradiction(hidden, tagged)
        return self

    def _claims(self) -> Iterator[_Claim]:
        """What every field that is given says."""
        kwargs = self.chat_template_kwargs or TemplateVariables()
        reasoning, thinking = self.reasoning or Reasoning(), self.thinking or Thinking()
        yield from _switch("chat_template_kwargs.enable_thinking", kwargs.enable_thinking)
        yield from _switch("chat_template_kwargs.thinking", kwargs.thinking)
        yield from _switch("enable_thinking", self.enable_thinking)
        yield from _switch("reasoning.enabled", reasoning.enabled)
        yield from _switch("thinking.type", None if thinking.type is None else thinking.type != "disabled")
        yield from _effort("reasoning_effort", self.reasoning_effort)
        yield from _effort("reasoning.effort", reasoning.effort)
        yield from _budget("chat_template_kwargs.thinking_budget", kwargs.thinking_budget)
        yield from _budget("thinking_budget", self.thinking_budget)
        yield from _budget("thinking_token_budget", self.thinking_token_budget)
        yield from _budget("reasoning.max_tokens", reasoning.max_tokens)
        yield from _budget("thinking.budget_tokens", thinking.budget_tokens)
        yield from self._views()

    def _views(self) -> Iterator[_Claim]:
        if self.include_reasoning is not None:
            yield _Claim("include_reasoning", "returned", self.include_reasoning)
        if self.reasoning is not None and self.reasoning.exclude is not None:
            yield _Claim("reasoning.exclude", "returned", not self.reasoning.exclude)
        if self.reasoning_format is not None:
            yield _Claim("reasoning_format", "returned", self.reasoning_format != "hidden")
            if self.reasoning_format != "hidden":
                yield _Claim("reasoning_format", "separate", self.reasoning_format == "parsed")
        if self.separate_reasoning is not None:
            yield _Claim("separate_reasoning", "separate", self.separate_reasoning)
        if self.stream_reasoning is not None:
            yield _Claim("stream_reasoning", "streamed", self.stream_reasoning)


def _switch(field: str, on: bool | None) -> Iterator[_Claim]:
    if on is not None:
        yield _Claim(field, "on", on)


def _effort(field: str, effort: Effort | None) -> Iterator[_Claim]:
    if effort is not None:
        yield _Claim(field, "on", effort != "none")
        yield _Claim(field, "effort", effort)


def _budget(field: str, tokens: int | None) -> Iterator[_Claim]:
    if tokens is not None and tokens >= 0:
        yield _Claim(field, "on", tokens > 0)
        if tokens:
            yield _Claim(field, "budget", tokens)


def _contradiction(one: _Claim, other: _Claim) -> ValidationError:
    """An error at the second of two fields, which names both."""
    words = {"one": one.field, "other": other.field, "one_says": _says(one), "other_says": _says(other)}
    message = "{one} {one_says} but {other} {other_says}; leave one of them out"
    error = InitErrorDetails(
        type=PydanticCustomError("contradiction", message, words), loc=tuple(other.field.split(".")), input=other.value
    )
    return ValidationError.from_exception_data("thinking", [error])


def _says(claim: _Claim) -> str:
    return _SAYS.get((claim.aspect, claim.value), f"asks for {claim.value}")
