"""How large a request may be."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True)
class RequestLimits:
    """What a server takes from anyone.

    Attributes:
        body_bytes: size of a body.
        body_seconds: time in which a body has to arrive.
        depth: lists and objects within one another in its JSON.
        messages: messages of a conversation, items of an input, or prompts of a batch.
        prompt_tokens: tokens of a prompt; None for no limit but the context.
        requests: requests under way in the whole server; None for no limit but the engines' own.
    """

    body_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20
    body_seconds: Annotated[float, Field(gt=0)] = 60.0
    depth: Annotated[int, Field(ge=1)] = 64
    messages: Annotated[int, Field(ge=1)] = 4096
    prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    requests: Annotated[int, Field(ge=1)] | None = None
