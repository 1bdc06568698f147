"""What ``/v1/chat/completions`` gives back. A field that is not set is left out of the JSON, never null.

Reasoning goes out under both of its names, ``reasoning`` and ``reasoning_content``, as clients read one or the
other.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from trillion_serve.chat.answer import AnswerFinish, Intervention
from trillion_serve.chat.message import MessageDelta, ToolCallDelta
from trillion_serve.chat.token_bytes import token_bytes
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import TokenLogprob
from trillion_serve.gateway.schema.common import OMIT_NONE
from trillion_serve.gateway.schema.usage import Usage


class TopLogprob(BaseModel):
    """A token that could have been chosen.

    Attributes:
        bytes: what it adds to the text in UTF-8. A token that is part of a character has only these to tell which:
            as text it is U+FFFD.
    """

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TopLogprob):
    """A token that was chosen, and its alternatives."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """One entry for every generated token but the one that ended the answer.

    Tokens of reasoning have one if the reasoning is sent; those of tool calls, and of the newlines between reasoning
    and answer, have one though they do not show.
    """

    content: list[TokenLogprobs]


class CalledFunction(BaseModel):
    """The function of a tool call, with its arguments as JSON text."""

    name: str
    arguments: str


class CalledTool(BaseModel):
    """A whole tool call."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(BaseModel):
    """A whole answer. ``content`` is null when there is nothing but tool calls, as the OpenAI API has it."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning: Annotated[str | None, OMIT_NONE] = None
    reasoning_content: Annotated[str | None, OMIT_NONE] = None
    tool_calls: Annotated[list[CalledTool] | None, OMIT_NONE] = None


class Choice(BaseModel):
    """One answer of ``n``. ``interventions`` says what was done to it that the model would not have done."""

    index: int
    message: AssistantMessage
    finish_reason: AnswerFinish
    logprobs: Annotated[ChoiceLogprobs | None, OMIT_NONE] = None
    interventions: Annotated[list[Intervention] | None, OMIT_NONE] = None


class ChatCompletion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


def text_fields(delta: MessageDelta) -> dict[str, Any]:
    """The fields of a message or delta that have something in them."""
    fields = {"content": delta.content, "reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
    return {name: text for name, text in fields.items() if text}


def whole_tool_calls(deltas: Sequence[ToolCallDelta]) -> list[CalledTool]:
    """The tool calls that pieces add up to."""
    pieces: dict[int, list[ToolCallDelta]] = {}
    for delta in deltas:
        pieces.setdefault(delta.index, []).append(delta)
    return [
        CalledTool(
            id=next(piece.id for piece in call if piece.id is not None),
            function=CalledFunction(
                name=next(piece.name for piece in call if piece.name is not None),
                arguments="".join(piece.arguments for piece in call),
            ),
        )
        for call in pieces.values()
    ]


def choice_logprobs(tokenizer: ChatTokenizer, entries: list[TokenLogprob]) -> ChoiceLogprobs:
    """Log-probabilities with their tokens as text."""
    return ChoiceLogprobs(
        content=[
            TokenLogprobs(
                **_token(tokenizer, entry.token_id, entry.logprob),
                top_logprobs=[TopLogprob(**_token(tokenizer, *pair)) for pair in entry.top],
            )
            for entry in entries
        ]
    )


def _token(tokenizer: ChatTokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    # JSON has no infinity; the OpenAI API writes a token that cannot come as -9999.
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": max(logprob, -9999.0),
        "bytes": list(token_bytes(tokenizer, token_id)),
    }
