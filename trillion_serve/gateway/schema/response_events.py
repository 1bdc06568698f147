"""The events of a streamed response, in the order in which they come.

``response.created``, ``response.in_progress``; for each item of the output ``response.output_item.added``, what
belongs to the kind of item, ``response.output_item.done``; and one of ``response.completed``,
``response.incomplete`` and ``response.failed``. Every event has a number, from 0.
"""

from typing import Literal

from pydantic import BaseModel

from trillion_serve.gateway.schema.response_items import OutputItem, OutputText, ReasoningText
from trillion_serve.gateway.schema.responses_response import ResponseObject


class Event(BaseModel):
    """An event."""

    type: str
    sequence_number: int


class ResponseEvent(Event):
    """The response as it is at this moment."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseObject


class ItemEvent(Event):
    """An item begins, or is whole."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _InItem(Event):
    output_index: int
    item_id: str


class PartEvent(_InItem):
    """A part of an item begins, or is whole."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int = 0
    part: OutputText | ReasoningText


class TextDelta(_InItem):
    """A piece of the answer."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    content_index: int = 0
    delta: str
    logprobs: tuple[()] = ()


class TextDone(_InItem):
    """The whole answer."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    content_index: int = 0
    text: str
    logprobs: tuple[()] = ()


class ReasoningDelta(_InItem):
    """A piece of the reasoning."""

    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    content_index: int = 0
    delta: str


class ReasoningDone(_InItem):
    """The whole reasoning."""

    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    content_index: int = 0
    text: str


class ArgumentsDelta(_InItem):
    """A piece of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    delta: str


class ArgumentsDone(_InItem):
    """The whole arguments of a call."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    name: str
    arguments: str
