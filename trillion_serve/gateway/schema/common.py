"""What the bodies of all requests have in common."""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MOST_ENTRIES = 1024
"""Most entries of a field that is a list of exceptions, such as ``logit_bias``."""
MOST_TOKENS = 2**31 - 1
"""Engines count tokens in 32 bits."""

OMIT_NONE = Field(exclude_if=lambda value: value is None)
"""A response field that is left out of the JSON while it is None."""


def taken_only_if(*values: Any) -> AfterValidator:
    """A field that the API has and this server does not: anything but null and these values is an error.

    Args:
        values: those that ask for nothing, or for what happens anyway.
    """
    return _only(values, f"this server supports nothing but {' or '.join(map(json.dumps, values))} here")


def _only(values: Sequence[Any], problem: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is None or any(_same(value, each) for each in values):
            return value
        raise PydanticCustomError("unsupported_field", "{problem}", {"problem": problem})

    return AfterValidator(check)


def _same(one: Any, other: Any) -> bool:
    """Whether both are the same JSON; to Python true is 1 as well."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def contradiction(param: str, problem: str, **words: str | int) -> PydanticCustomError:
    """An error of a field that does not go with others.

    Args:
        param: the field, which pydantic does not know when a whole request is checked.
        problem: what is wrong, with ``words`` in braces.
    """
    return PydanticCustomError("contradiction", problem, {**words, "param": param})


def at_most(count: int) -> Callable[[Any], Any]:
    """Refuses a mapping with more entries before it looks at each: pydantic would collect their errors first."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            raise PydanticCustomError(
                "too_long", "this has {has} entries; at most {count} are taken", {"has": len(value), "count": count}
            )
        return value

    return check


def as_list(value: Any) -> Any:
    """A string as a list of one."""
    return [value] if isinstance(value, str) else value


_UNSUPPORTED = "this field is not supported by this server"

Unsupported = Annotated[Any, _only((False, "", [], {}), _UNSUPPORTED)]
"""A field that the API has and this server does not: anything that asks for something is an error."""

RefusedUnlessNull = Annotated[Any, _only((), _UNSUPPORTED)]
"""Such a field in which whatever is written asks for something."""

TokenIds = Annotated[list[int], Field(max_length=MOST_ENTRIES, fail_fast=True)]
"""Token ids, which are checked against the vocabulary later."""


class RequestModel(BaseModel):
    """Types are strict, and unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
