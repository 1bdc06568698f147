"""What ``/v1/responses`` gives back. As the API has it, a field that is not set is null."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trillion_serve.chat.answer import Intervention
from trillion_serve.chat.thinking import Effort
from trillion_serve.gateway.schema.common import OMIT_NONE
from trillion_serve.gateway.schema.response_items import OutputItem
from trillion_serve.gateway.schema.usage import Usage

ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponseError(BaseModel):
    """Why a response failed."""

    code: ErrorCode
    message: str


class IncompleteDetails(BaseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(BaseModel):
    """Of the input's tokens: how many the engine had in its prefix cache. What it writes there, it does not tell."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Of the output's tokens: how many were reasoning."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "ResponseUsage":
        """The same figures under their names in this API."""
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
        )


class ReasoningConfig(BaseModel):
    """How the model was asked to think."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None


class FunctionTool(BaseModel):
    """A function that the model could call."""

    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(BaseModel):
    """The function that the model had to call."""

    type: Literal["function"] = "function"
    name: str


class AllowedChoice(BaseModel):
    """The functions that the model was left."""

    type: Literal["allowed_tools"] = "allowed_tools"
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice]


class TextFormat(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(serialize_by_alias=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str | None, OMIT_NONE] = None
    description: Annotated[str | None, OMIT_NONE] = None
    schema_: Annotated[dict[str, Any] | None, OMIT_NONE, Field(alias="schema")] = None
    strict: Annotated[bool | None, OMIT_NONE] = None


class TextConfig(BaseModel):
    """The form of the answer."""

    format: TextFormat = TextFormat()


class ResponseObject(BaseModel):
    """A response, finished or under way. ``interventions`` is there if something was done to it that the model
    would not have done."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: Sequence[OutputItem] = ()
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningConfig
    store: bool
    temperature: float
    text: TextConfig
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedChoice
    tools: list[FunctionTool]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    interventions: Annotated[list[Intervention] | None, OMIT_NONE] = None


class DeletedResponse(BaseModel):
    """A response that is no more."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True
