"""How many tokens a request took."""

from pydantic import BaseModel


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
