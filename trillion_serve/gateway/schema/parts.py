"""What a message says: a text, or parts that are texts."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

_MOST_CHARACTERS = 64


def only_texts(*kinds: str) -> Callable[[Any], Any]:
    """Refuses parts that are none of these kinds, and says what they are. A refusal is a text.

    Args:
        kinds: the types of parts that are texts; a refusal becomes one of the last.
    """

    def check(parts: Any) -> Any:
        if not isinstance(parts, list):
            return parts
        return [_as_text(part, place, kinds) for place, part in enumerate(parts)]

    return check


def form_of(content: Any) -> str:
    """Which of its two forms a content has."""
    return "several parts" if isinstance(content, list) else "a text"


def _as_text(part: Any, place: int, kinds: Sequence[str]) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind in kinds:
        return part
    if kind == "refusal":
        return {"type": kinds[-1], "text": part.get("refusal")}
    raise PydanticCustomError(
        "unsupported_field",
        "only text parts are taken; part {place} is {kind}",
        {"place": place, "kind": kind[:_MOST_CHARACTERS]},
    )
