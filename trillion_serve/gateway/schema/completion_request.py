"""What ``/v1/completions`` takes, as the OpenAI API has it, with what vLLM's users add to it.

Fields that nobody knows are ignored, as clients rely on. Fields that are known and not supported are refused
by name.
"""

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from trillion_serve.gateway.schema.common import Unsupported, contradiction, taken_only_if
from trillion_serve.gateway.schema.sampling import SamplingFields

MOST_CHOICES = 1024
"""Most texts that one request may ask for, prompts times ``n``."""

TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _form(prompt: Any) -> str:
    """Which of the API's four forms a prompt has."""
    if not isinstance(prompt, list):
        return "a string"
    first = prompt[0] if prompt else ""
    return "several strings" if isinstance(first, str) else "token ids" if isinstance(first, int) else "several ids"


# The names of the forms are no identifiers, so that they do not show in the path of an error.
PromptField = Annotated[
    Annotated[str, Tag("a string")]
    | Annotated[list[str], Field(min_length=1, fail_fast=True), Tag("several strings")]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[list[TokenIds], Field(fail_fast=True), Tag("several ids")],
    Discriminator(_form),
]


class CompletionRequest(SamplingFields):
    """The body of a request. ``max_tokens`` is 16 unless given, as the API has it."""

    prompt: PromptField
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    add_special_tokens: bool | None = None
    skip_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    prompt_embeds: Unsupported = None
    tools: Unsupported = None
    messages: Unsupported = None

    # Nothing is done about the form of a text here.
    response_format: Annotated[Any, taken_only_if({"type": "text"})] = None
    structured_outputs: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    json_schema: Unsupported = None
    regex: Unsupported = None
    ebnf: Unsupported = None

    # Nor about thinking.
    reasoning_effort: Annotated[Any, taken_only_if("none")] = None
    reasoning: Unsupported = None
    thinking: Unsupported = None
    thinking_budget: Unsupported = None
    thinking_token_budget: Unsupported = None
    enable_thinking: Unsupported = None
    chat_template_kwargs: Unsupported = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, all of one kind."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @model_validator(mode="after")
    def _completion_fields_agree(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise contradiction("max_tokens", "0 gives back nothing unless echo is true")
        if len(self.prompts) * (self.n or 1) > MOST_CHOICES:
            raise PydanticCustomError(
                "too_many_choices",
                "one request may ask for {most} texts, prompts times n",
                {"most": MOST_CHOICES, "param": "n" if (self.n or 1) > 1 else "prompt"},
            )
        return self
