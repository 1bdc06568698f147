"""References within a JSON Schema, made right for where the schema stands and for engines to read."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_NAMES_OF_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose keys are names, and whose values are schemas."""
_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are no schemas."""
_OF_A_ROOT = frozenset({"$schema", "$id"})
"""Keywords that belong to a document of its own."""
_URI_CHARACTERS = "#/%~!$&'()*+,;=:@?"


def rooted(schema: Any, root: str = "#") -> Any:
    """A schema with references to itself that are right when it stands at ``root``.

    References become URIs: in Python and TypeScript definitions have Korean names, and the schemas that are made
    of them have these in their references as they are, which llguidance refuses.

    Args:
        schema: a JSON Schema, or a part of one.
        root: a JSON pointer, as a URI fragment.
    """
    if isinstance(schema, list):
        return [rooted(item, root) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = root + quote(value.removeprefix("#"), safe=_URI_CHARACTERS)
        elif key in _NAMES_OF_SCHEMAS and isinstance(value, Mapping):
            moved[key] = {name: rooted(item, root) for name, item in value.items()}
        elif root == "#" or key not in _OF_A_ROOT:
            moved[key] = value if key in _DATA else rooted(value, root)
    return moved
