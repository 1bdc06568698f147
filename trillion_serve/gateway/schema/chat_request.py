"""What ``/v1/chat/completions`` takes, as the OpenAI API has it, with what vLLM's users add to it.

Fields that nobody knows are ignored, as clients rely on. Fields that are known and not supported are refused
by name.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from trillion_serve.gateway.schema.common import RequestModel, contradiction
from trillion_serve.gateway.schema.content import ContentFields
from trillion_serve.gateway.schema.parts import form_of, only_texts
from trillion_serve.gateway.schema.sampling import SamplingFields
from trillion_serve.gateway.schema.thinking import ThinkingFields


class TextPart(RequestModel):
    """A part of a message's content. Only text is taken."""

    type: Literal["text"]
    text: str


# The names of the forms are no identifiers, so that they do not show in the path of an error.
Content = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[list[TextPart], Field(fail_fast=True), BeforeValidator(only_texts("text")), Tag("several parts")],
    Discriminator(form_of),
]
"""What a message says. The API's refusal of an assistant is a text."""


class FunctionCall(RequestModel):
    """The function of a past tool call, with its arguments as JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(RequestModel):
    """A past tool call."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(RequestModel):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _content_is_there(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("missing_content", "a {role} message needs content", {"role": self.role})
        return self


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]
"""A conversation."""


class ChatCompletionRequest(ThinkingFields, ContentFields, SamplingFields):
    """The body of a request."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate, if the request says."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise contradiction("max_completion_tokens", "differs from max_tokens; leave one of them out")
        if self.top_logprobs and not self.logprobs:
            raise contradiction("top_logprobs", "needs logprobs to be true")
        return self
