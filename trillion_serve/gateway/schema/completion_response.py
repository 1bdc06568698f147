"""What ``/v1/completions`` gives back. A field that is not set is left out of the JSON; ``logprobs`` is null."""

from typing import Annotated, Literal

from pydantic import BaseModel

from trillion_serve.gateway.schema.common import OMIT_NONE
from trillion_serve.gateway.schema.usage import Usage

CompletionFinish = Literal["stop", "length"]


class CompletionLogprobs(BaseModel):
    """One entry for every token of the text, and for the token that ended it.

    Attributes:
        tokens: the tokens as text.
        token_logprobs: null for the first token of a prompt, before which there is nothing.
        top_logprobs: the most probable tokens at each place, and the one that came.
        text_offset: where in the text each token begins. What a stop string or a hidden token takes away
            counts for nothing.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text. Those of the first prompt come first."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: CompletionFinish | None


class Completion(BaseModel):
    """The texts of a request; while streaming, what a chunk adds to one of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Annotated[Usage | None, OMIT_NONE] = None
