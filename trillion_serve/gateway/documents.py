"""Documents that people write, read strictly: YAML, and every error names the field."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ValidationError

from trillion_serve.errors import ServeError

D = TypeVar("D", bound=BaseModel)
_BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """Takes only true and false for booleans, as YAML 1.2 does: in 1.1 ``on`` is one too, and a field of ours."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))


def read_document(path: Path, kind: type[D]) -> D:
    """What a YAML file holds.

    Raises:
        ServeError: it cannot be read, is empty or no YAML, or has fields that ``kind`` has not.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ServeError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ServeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        # Half a file that is being written looks like this, and would undo everything.
        raise ServeError(f"{path} is empty; a file that is meant to say nothing says {{}}")
    try:
        # As JSON, so that strictness forbids "3" for 3 but not a list for a tuple.
        return kind.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        problems = "; ".join(f"{field_path(e['loc']) or 'the document'}: {e['msg']}" for e in error.errors())
        raise ServeError(f"{path}: {problems}") from None


def field_path(location: Sequence[int | str]) -> str:
    """``models[0].replicas[1].url`` for the place that pydantic names."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
