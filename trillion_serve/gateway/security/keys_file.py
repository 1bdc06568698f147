"""A file of API keys, in YAML: their hashes, names and limits."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from trillion_serve.errors import ServeError
from trillion_serve.gateway.documents import field_path, read_document
from trillion_serve.gateway.security.keys import ApiKey

_HEADING = "# API keys of trillion-serve: hashes of random keys, which cannot be turned back into them.\n"


_KEY = TypeAdapter(ApiKey)


class _KeysDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: tuple[ApiKey, ...] = ()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys in a file.

    Raises:
        ServeError: it cannot be read, or holds something else.
    """
    keys = read_document(path, _KeysDocument).keys
    names = [key.name for key in keys]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ServeError(f"{path}: two keys are called {min(twice)!r}; revoke one of them")
    return keys


def checked(key: ApiKey) -> ApiKey:
    """The key, if its fields are what a file may hold.

    Raises:
        ServeError: one is not.
    """
    try:
        return _KEY.validate_python(asdict(key))
    except ValidationError as error:
        first = error.errors()[0]
        raise ServeError(f"{field_path(first['loc'])} is {first['input']!r}: {first['msg']}") from None


def add_key(path: Path, key: ApiKey) -> None:
    """Append a key to a file, which is made if there is none.

    Raises:
        ServeError: a key of that name is there already, or the file cannot be read or written.
    """
    keys = read_keys(path) if path.exists() else ()
    if any(known.name == key.name for known in keys):
        raise ServeError(f"{path} has a key called {key.name!r} already; revoke it first or choose another name")
    _write(path, (*keys, key))


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of a file.

    Raises:
        ServeError: there is none of that name, or the file cannot be read or written.
    """
    keys = read_keys(path)
    kept = [key for key in keys if key.name != name]
    if len(kept) == len(keys):
        names = ", ".join(repr(key.name) for key in keys) or "none"
        raise ServeError(f"{path} has no key called {name!r}, only {names}")
    _write(path, kept)


def _write(path: Path, keys: Iterable[ApiKey]) -> None:
    """Write the file anew and put it in place at once, readable by its owner only."""
    text = _HEADING + yaml.safe_dump({"keys": [_entry(key) for key in keys]}, sort_keys=False, allow_unicode=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(draft).replace(path)
    except OSError as error:
        raise ServeError(f"{path} cannot be written: {error.strerror}") from error


def _entry(key: ApiKey) -> dict[str, Any]:
    """A key as the file has it: what is not at its default."""
    entry = {f.name: getattr(key, f.name) for f in fields(key) if getattr(key, f.name) != f.default}
    return entry | ({"models": sorted(key.models)} if key.models is not None else {})
