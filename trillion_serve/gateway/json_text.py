"""Strings in JSON that are no text: one half of a surrogate pair can be escaped there, and UTF-8 cannot write it."""

from collections.abc import Iterator
from typing import Any

from trillion_serve.gateway.documents import field_path
from trillion_serve.gateway.errors import ApiError


def check_text(value: Any) -> None:
    """Refuse JSON with such a string in it: a tokenizer and a response would fail on it.

    Raises:
        ApiError: there is one; ``param`` is where.
    """
    broken = next(_broken(value, ()), None)
    if broken is not None:
        param = field_path(broken) or None
        place = f"{param}: " if param else ""
        raise ApiError(
            f"{place}this is no text: it has one half of a surrogate pair without the other",
            code="invalid_value",
            param=param,
        )


def _broken(value: Any, place: tuple[int | str, ...]) -> Iterator[tuple[int | str, ...]]:
    """Where such strings are. One that is a key is at what it is a key of."""
    match value:
        case str() if not _is_text(value):
            yield place
        case list():
            for index, item in enumerate(value):
                yield from _broken(item, (*place, index))
        case dict():
            if not all(map(_is_text, value)):
                yield place
            for key, item in value.items():
                yield from _broken(item, (*place, key))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
