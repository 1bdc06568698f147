"""What ``/tokenize`` and ``/detokenize`` take and give back, as vLLM has them."""

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from trillion_serve.gateway.schema.chat_request import Messages
from trillion_serve.gateway.schema.common import OMIT_NONE, RequestModel, Unsupported, contradiction
from trillion_serve.gateway.schema.thinking import ThinkingFields
from trillion_serve.gateway.schema.tools import ToolFields


class TokenizeRequest(ThinkingFields, ToolFields):
    """A text, or a conversation as the chat endpoint would render it, whose fields about tools and thinking count.

    Attributes:
        model: may be left out where there is only one.
        prompt: a text, in which control tokens count as such.
        messages: a conversation, in which they are text.
        add_special_tokens: whether the tokenizer's own tokens go around the text; as a rule they do around a
            prompt, and do not around a conversation, whose template brings them.
        add_generation_prompt: whether the conversation is rendered up to where an answer begins.
        return_token_strs: whether to give the tokens as they stand in the vocabulary.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    continue_final_message: Unsupported = None
    chat_template: Unsupported = None
    documents: Unsupported = None
    media_io_kwargs: Unsupported = None
    mm_processor_kwargs: Unsupported = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.prompt is None and self.messages is None:
            raise contradiction("prompt", "give either this or messages")
        if self.prompt is not None and self.messages is not None:
            raise contradiction("messages", "does not go with prompt; leave one of them out")
        if self.messages is not None and self.add_special_tokens:
            raise contradiction("add_special_tokens", "does not go with messages: the chat template brings its own")
        return self


class TokenizeResponse(BaseModel):
    """Tokens. ``max_model_len`` is the context of the model, prompt and answer together."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: Annotated[list[str] | None, OMIT_NONE] = None


class DetokenizeRequest(RequestModel):
    """Tokens to be read."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


class DetokenizeResponse(BaseModel):
    """Their text, control tokens included."""

    prompt: str
