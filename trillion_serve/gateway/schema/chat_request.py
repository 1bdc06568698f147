"""What ``/v1/chat/completions`` takes, as the OpenAI API has it, with what vLLM's users add to it.

Fields that nobody knows are ignored, as clients rely on. Fields that are known and not supported are refused
by name.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from trillion_serve.gateway.schema.common import RequestModel, Unsupported
from trillion_serve.gateway.schema.content import ContentFields
from trillion_serve.gateway.schema.sampling import SamplingFields
from trillion_serve.gateway.schema.thinking import ThinkingFields


class TextPart(RequestModel):
    """A part of a message's content. Only text is taken."""

    type: Literal["text"]
    text: str


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
    content: str | list[TextPart] | None = None
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


class ChatCompletionRequest(ThinkingFields, ContentFields, SamplingFields):
    """The body of a request."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    audio: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    echo: Unsupported = None
    add_generation_prompt: Unsupported = None
    continue_final_message: Unsupported = None
    chat_template: Unsupported = None
    modalities: list[Literal["text"]] | None = None

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate, if the request says."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise PydanticCustomError("contradiction", "max_tokens and max_completion_tokens differ")
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("contradiction", "top_logprobs needs logprobs to be true")
        return self
