"""The sampling fields that chat and plain completions share."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from trillion_serve.gateway.schema.common import (
    MOST_ENTRIES,
    MOST_TOKENS,
    RequestModel,
    TokenIds,
    Unsupported,
    as_list,
    at_most,
    contradiction,
)
from trillion_serve.gateway.schema.unsupported import UnsupportedFields

_Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(RequestModel):
    """How to stream."""

    include_usage: bool = False
    continuous_usage_stats: Unsupported = None
    include_obfuscation: Unsupported = None


class SamplingFields(UnsupportedFields):
    """How to choose tokens and when to stop, as the OpenAI API has it, with what vLLM's users add to it."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    stop: Annotated[
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)] | None, BeforeValidator(as_list)
    ] = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - 128)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MOST_TOKENS)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(strict=False)], _Bias],
            Field(max_length=MOST_ENTRIES),
            BeforeValidator(at_most(MOST_ENTRIES)),
        ]
        | None
    ) = None

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate, if the request says."""
        return self.max_tokens

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options and not self.stream:
            raise contradiction("stream_options", "needs stream to be true")
        return self
