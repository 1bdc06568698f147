"""What ``/v1/chat/completions`` takes, as the OpenAI API has it, with what vLLM's users add to it.

Fields that nobody knows are ignored, as clients rely on. Fields that are known and not supported are refused
by name. ``tools`` reach the model through its template; the calls it makes come back in the content, between
``<tool_call>`` tags.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _refuse(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError("unsupported_field", "this field is not supported by this server")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Unsupported = Annotated[Any, AfterValidator(_refuse)]
"""A field that the API has and this server does not: anything but null is an error."""


class RequestModel(BaseModel):
    """Types are strict, and unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


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


class Function(RequestModel):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class StreamOptions(RequestModel):
    """How to stream."""

    include_usage: bool = False


class ResponseFormat(RequestModel):
    """The form of the answer; only plain text."""

    type: Literal["text"]


class TemplateVariables(BaseModel):
    """Variables for the chat template. Two of them are the thinking switch, under either of its names."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatCompletionRequest(RequestModel):
    """The body of a request."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(_as_list), Field(max_length=16)
    ] = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - 128)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[Annotated[int, Field(strict=False)], Annotated[float, Field(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateVariables = TemplateVariables()
    reasoning_effort: ReasoningEffort | None = None

    audio: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    best_of: Unsupported = None
    use_beam_search: Unsupported = None
    echo: Unsupported = None
    add_generation_prompt: Unsupported = None
    continue_final_message: Unsupported = None
    chat_template: Unsupported = None
    prompt_logprobs: Unsupported = None
    structured_outputs: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    reasoning: Unsupported = None
    thinking: Unsupported = None
    thinking_token_budget: Unsupported = None
    include_reasoning: Unsupported = None
    separate_reasoning: Unsupported = None
    stream_reasoning: Unsupported = None
    modalities: list[Literal["text"]] | None = None

    @property
    def thinking_switches(self) -> dict[str, bool]:
        """Every field that turns thinking on or off, by its name."""
        variables = self.chat_template_kwargs
        switches = {
            "chat_template_kwargs.enable_thinking": variables.enable_thinking,
            "chat_template_kwargs.thinking": variables.thinking,
            "reasoning_effort": None if self.reasoning_effort is None else self.reasoning_effort != "none",
        }
        return {name: switch for name, switch in switches.items() if switch is not None}

    @property
    def thinks(self) -> bool | None:
        """Whether to think; None leaves it to the template."""
        return next(iter(self.thinking_switches.values()), None)

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate, if the request says."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        switches = self.thinking_switches
        if len(set(switches.values())) > 1:
            on = next(name for name, switch in switches.items() if switch)
            off = next(name for name, switch in switches.items() if not switch)
            raise PydanticCustomError(
                "contradiction", "{on} turns thinking on and {off} turns it off", {"on": on, "off": off}
            )
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise PydanticCustomError("contradiction", "max_tokens and max_completion_tokens differ")
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("contradiction", "top_logprobs needs logprobs to be true")
        if self.stream_options and not self.stream:
            raise PydanticCustomError("contradiction", "stream_options needs stream to be true")
        return self
