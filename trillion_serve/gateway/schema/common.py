"""What the bodies of all requests have in common."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

OMIT_NONE = Field(exclude_if=lambda value: value is None)
"""A response field that is left out of the JSON while it is None."""


def _refuse(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError("unsupported_field", "this field is not supported by this server")
    return value


def as_list(value: Any) -> Any:
    """A string as a list of one."""
    return [value] if isinstance(value, str) else value


Unsupported = Annotated[Any, AfterValidator(_refuse)]
"""A field that the API has and this server does not: anything but null is an error."""


class RequestModel(BaseModel):
    """Types are strict, and unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
