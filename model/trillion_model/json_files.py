"""JSON files of a checkpoint, read as strictly as tensors are: an object, each of its keys once."""

import json
from pathlib import Path
from typing import Any

from trillion_model.errors import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        CheckpointError: the file is missing, unreadable, no JSON, or no object, or a key comes twice.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return parse_object(content, str(path))


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    """The object in ``content``, which messages call ``what``.

    Raises:
        CheckpointError: it is no JSON, or no object, or a key comes twice.
    """

    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in pairs:
            if name in fields:
                raise CheckpointError(f"{name}: listed twice in {what}; keep the one that is meant")
            fields[name] = value
        return fields

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=refuse_repeats)
    except RecursionError as error:
        raise CheckpointError(f"{what} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not JSON of an object, but of {type(value).__name__}")
    return value
