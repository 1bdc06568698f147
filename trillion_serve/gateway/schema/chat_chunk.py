"""The events of a streamed chat answer. A field that is not set is left out of the JSON, never null.

These are msgspec structs, not pydantic models as all other bodies are: one is made and written for every few
tokens, and structs take less time for both.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from trillion_serve.chat.answer import AnswerFinish, Intervention
from trillion_serve.chat.message import MessageDelta, ToolCallDelta
from trillion_serve.gateway.schema.chat_response import ChoiceLogprobs
from trillion_serve.gateway.schema.usage import Usage


class FunctionChunk(Struct):
    """What a chunk adds to the function of a tool call."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallChunk(Struct):
    """What a chunk adds to a tool call. ``id``, ``type`` and the function's name come in its first chunk."""

    index: int
    function: FunctionChunk
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Struct):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallChunk] | UnsetType = UNSET


class ChunkChoice(Struct):
    """What a chunk adds to one answer of ``n``. ``finish_reason`` is null until the last."""

    index: int
    delta: Delta
    finish_reason: AnswerFinish | None
    logprobs: ChoiceLogprobs | UnsetType = UNSET
    interventions: Sequence[Intervention] | UnsetType = UNSET


class ChatCompletionChunk(Struct):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | UnsetType = UNSET


def delta_of(message: MessageDelta) -> Delta:
    """What a part of a message is in a chunk."""
    delta = Delta()
    if message.content:
        delta.content = message.content
    if message.reasoning:
        delta.reasoning = delta.reasoning_content = message.reasoning
    if message.tool_calls:
        delta.tool_calls = [_tool_call(call) for call in message.tool_calls]
    return delta


def _tool_call(delta: ToolCallDelta) -> ToolCallChunk:
    call = ToolCallChunk(index=delta.index, function=FunctionChunk(arguments=delta.arguments))
    if delta.id is not None:
        call.id, call.type = delta.id, "function"
    if delta.name is not None:
        call.function.name = delta.name
    return call
