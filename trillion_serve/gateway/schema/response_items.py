"""The items that a conversation of the Responses API is made of: what went in, and what came out."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputText(BaseModel):
    """A part of a message that went in."""

    type: Literal["input_text"] = "input_text"
    text: str


class InputMessage(BaseModel):
    """A message that went in."""

    id: str
    type: Literal["message"] = "message"
    status: ItemStatus = "completed"
    role: Literal["user", "system", "developer"]
    content: list[InputText]


class OutputText(BaseModel):
    """A part of an answer. There are neither annotations nor log-probabilities."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[None] = Field(default=[], max_length=0)
    logprobs: list[None] = Field(default=[], max_length=0)


class OutputMessage(BaseModel):
    """An answer."""

    id: str
    type: Literal["message"] = "message"
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningText(BaseModel):
    """What the model thought."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ReasoningItem(BaseModel):
    """The reasoning before an answer. It is given in full, so there is no summary."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus
    summary: list[None] = Field(default=[], max_length=0)
    content: list[ReasoningText]


class FunctionCallItem(BaseModel):
    """A call of a function, with its arguments as JSON text."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(BaseModel):
    """What a function gave back."""

    id: str
    type: Literal["function_call_output"] = "function_call_output"
    status: ItemStatus = "completed"
    call_id: str
    output: str


OutputItem = ReasoningItem | OutputMessage | FunctionCallItem
Item = InputMessage | FunctionCallOutputItem | OutputItem


class ItemList(BaseModel):
    """A page of items."""

    object: Literal["list"] = "list"
    data: Sequence[Item]
    first_id: str
    last_id: str
    has_more: bool
