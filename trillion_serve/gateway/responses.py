"""What ``/v1/chat/completions`` gives back. A field that is not set is left out of the JSON, never null.

Reasoning goes out under both of its names, ``reasoning`` and ``reasoning_content``, as clients read one or the
other.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from trillion_serve.chat.decode import MessageDelta
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import FinishReason, TokenLogprob

_OMIT_NONE = Field(exclude_if=lambda value: value is None)


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens: how many the engine had in its prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Of the generated tokens: how many were reasoning."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens of a request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(BaseModel):
    """A token that could have been chosen. ``bytes`` is null for a token that is part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(TopLogprob):
    """A token that was chosen, and its alternatives."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """One entry for every generated token, reasoning included, but for the one that ended the answer."""

    content: list[TokenLogprobs]


class AssistantMessage(BaseModel):
    """A whole answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning: Annotated[str | None, _OMIT_NONE] = None
    reasoning_content: Annotated[str | None, _OMIT_NONE] = None


class Choice(BaseModel):
    """One answer of ``n``."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: Annotated[ChoiceLogprobs | None, _OMIT_NONE] = None


class ChatCompletion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds to the message."""

    role: Annotated[Literal["assistant"] | None, _OMIT_NONE] = None
    content: Annotated[str | None, _OMIT_NONE] = None
    reasoning: Annotated[str | None, _OMIT_NONE] = None
    reasoning_content: Annotated[str | None, _OMIT_NONE] = None


class ChunkChoice(BaseModel):
    """What a chunk adds to one answer of ``n``. ``finish_reason`` is null until the last."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: Annotated[ChoiceLogprobs | None, _OMIT_NONE] = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Annotated[Usage | None, _OMIT_NONE] = None


class ModelCard(BaseModel):
    """A model that is served here."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "trillion-serve"
    max_model_len: int


class ModelList(BaseModel):
    """The models that are served here."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def text_fields(delta: MessageDelta) -> dict[str, Any]:
    """The fields of a message or delta that have something in them."""
    fields = {"content": delta.content, "reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
    return {name: text for name, text in fields.items() if text}


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
    text = tokenizer.token_text(token_id)
    partial = "\N{REPLACEMENT CHARACTER}" in text
    # JSON has no infinity; the OpenAI API writes a token that cannot come as -9999.
    return {
        "token": text,
        "logprob": max(logprob, -9999.0),
        "bytes": None if partial else list(text.encode("utf-8")),
    }
