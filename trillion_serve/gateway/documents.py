"""Documents that people write, read strictly: YAML, and every error names the field."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ValidationError

from trillion_serve.errors import ServeError

D = TypeVar("D", bound=BaseModel)


def read_document(path: Path, kind: type[D]) -> D:
    """What a YAML file holds.

    Raises:
        ServeError: it cannot be read, is no YAML, or has fields that ``kind`` has not.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ServeError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ServeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        # As JSON, so that strictness forbids "3" for 3 but not a list for a tuple.
        return kind.model_validate_json(json.dumps({} if content is None else content, default=str))
    except ValidationError as error:
        problems = "; ".join(f"{field_path(e['loc']) or 'the document'}: {e['msg']}" for e in error.errors())
        raise ServeError(f"{path}: {problems}") from None


def field_path(location: Sequence[int | str]) -> str:
    """``models[0].replicas[1].url`` for the place that pydantic names."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
