"""What ``/v1/responses`` takes, as the OpenAI API has it.

The fields about sampling and thinking that the chat endpoint has beyond the API are taken here as well. Fields
that nobody knows are ignored, as clients rely on. Fields that are known and not supported are refused by name.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from trillion_serve.engines.protocol import Grammar
from trillion_serve.gateway.schema.common import RequestModel, Unsupported, at_most, taken_only_if
from trillion_serve.gateway.schema.content import ContentFields
from trillion_serve.gateway.schema.parts import form_of, only_texts
from trillion_serve.gateway.schema.sampling import SamplingFields
from trillion_serve.gateway.schema.structure import ResponseFormat, StructureFields
from trillion_serve.gateway.schema.thinking import Reasoning, ThinkingFields
from trillion_serve.gateway.schema.tools import Tool, ToolChoice


class TextPart(RequestModel):
    """A part of a content. Only text is taken."""

    type: Literal["input_text", "output_text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[
        list[TextPart],
        Field(fail_fast=True),
        BeforeValidator(only_texts("input_text", "output_text")),
        Tag("several parts"),
    ],
    Discriminator(form_of),
]
"""What an item says. The API's refusal of an assistant is a text."""


class MessageItem(RequestModel):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(RequestModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(RequestModel):
    """What a function gave back."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningPart(RequestModel):
    """A piece of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class PastReasoning(RequestModel):
    """Reasoning of an earlier turn. The model does not see it again."""

    type: Literal["reasoning"]
    content: list[ReasoningPart] | None = None


_FORMS = {
    "message": "a message",
    "function_call": "a call",
    "function_call_output": "its output",
    "reasoning": "reasoning",
}


def _form(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return _FORMS.get(kind) if isinstance(kind, str) else None


def _known_item(item: Any) -> Any:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if isinstance(kind, str) and kind not in _FORMS:
        raise PydanticCustomError(
            "unsupported_field",
            "items of type {kind} are not taken, only {known}",
            {"kind": kind[:64], "known": ", ".join(_FORMS)},
        )
    return item


# The names of the forms are no identifiers where they can be none, so that they do not show in the path of an error.
InputItem = Annotated[
    Annotated[MessageItem, Tag("a message")]
    | Annotated[CallItem, Tag("a call")]
    | Annotated[CallOutputItem, Tag("its output")]
    | Annotated[PastReasoning, Tag("reasoning")],
    Discriminator(
        _form,
        custom_error_type="unsupported_item",
        custom_error_message=f"an item is an object whose type is one of {', '.join(_FORMS)}",
    ),
    BeforeValidator(_known_item),
]

InputField = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[list[InputItem], Field(min_length=1, fail_fast=True), Tag("several items")],
    Discriminator(lambda given: "several items" if isinstance(given, list) else "a text"),
]


class ResponseReasoning(Reasoning):
    """How to think. There are no summaries: the reasoning is given in full."""

    summary: Annotated[Any, taken_only_if("auto")] = None
    generate_summary: Annotated[Any, taken_only_if("auto")] = None
    context: Unsupported = None
    mode: Unsupported = None


class ResponseStreamOptions(RequestModel):
    """How to stream."""

    include_obfuscation: Unsupported = None


def _nested_tool(tool: Any) -> Any:
    """A function as the chat API has it."""
    if not isinstance(tool, dict) or tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _nested_choice(choice: Any) -> Any:
    """A choice of tools as the chat API has it."""
    match choice:
        case {"type": "function", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "tools": list(tools)}:
            allowed = {"mode": choice.get("mode"), "tools": [_nested_choice(tool) for tool in tools]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice


def _nested_format(form: Any) -> Any:
    """The form of an answer as the chat API has it."""
    if not isinstance(form, dict) or form.get("type") != "json_schema" or "json_schema" in form:
        return form
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


class TextFields(RequestModel):
    """The form of the answer."""

    format: Annotated[ResponseFormat, BeforeValidator(_nested_format)] | None = None
    verbosity: Annotated[Any, taken_only_if("medium")] = None


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
    BeforeValidator(at_most(16)),
]
"""A client's own notes, which come back as they are."""


class ResponsesRequest(ThinkingFields, ContentFields, SamplingFields):
    """The body of a request."""

    input: InputField
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream_options: ResponseStreamOptions | None = None  # type: ignore[assignment]
    max_output_tokens: int | None = Field(None, ge=1)
    reasoning: ResponseReasoning | None = None
    tools: Annotated[list[Annotated[Tool, BeforeValidator(_nested_tool)]], Field(fail_fast=True)] | None = None
    tool_choice: Annotated[ToolChoice, BeforeValidator(_nested_choice)] | None = None
    text: TextFields | None = None
    metadata: Metadata | None = None
    user: str | None = None

    truncation: Annotated[Any, taken_only_if("disabled")] = None
    background: Unsupported = None
    n: Annotated[Any, taken_only_if(1)] = None
    max_tokens: Unsupported = None
    max_completion_tokens: Unsupported = None
    messages: Unsupported = None
    response_format: Annotated[Any, taken_only_if({"type": "text"})] = None
    include: Unsupported = None
    logprobs: Unsupported = None
    top_logprobs: Annotated[Any, taken_only_if(0)] = None
    max_tool_calls: Unsupported = None
    conversation: Unsupported = None
    prompt: Unsupported = None
    context_management: Unsupported = None
    moderation: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate, if the request says."""
        return self.max_output_tokens

    def _grammars(self) -> Iterator[tuple[str, Grammar]]:
        form = self.text and self.text.format
        for _, grammar in StructureFields.model_construct(response_format=form)._grammars():
            yield "text.format", grammar
        yield from super()._grammars()
