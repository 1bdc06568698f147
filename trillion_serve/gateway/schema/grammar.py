"""Schemas and grammars in requests, checked before an answer begins: an engine would refuse them amid a stream."""

import json
from typing import Annotated, Any

import jsonschema_rs
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from trillion_serve.chat.references import rooted
from trillion_serve.engines.protocol import Grammar
from trillion_serve.gateway.schema.grammar_check import refusal_of

MOST_CHARACTERS = 65_536
"""Longest schema or grammar."""

_DEFAULT_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# The validator's own search for the dialect of a schema would fetch whatever address a client writes there.
_DIALECTS = {
    dialect: jsonschema_rs.validator_for({"$schema": dialect, "$ref": dialect})
    for dialect in (
        _DEFAULT_DIALECT,
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/draft-06/schema",
        "http://json-schema.org/draft-04/schema",
    )
}


def _valid_schema(schema: dict[str, Any]) -> dict[str, Any]:
    dialect = str(schema.get("$schema", _DEFAULT_DIALECT)).removesuffix("#")
    if dialect not in _DIALECTS:
        known = ", ".join(_DIALECTS)
        raise PydanticCustomError(
            "invalid_schema", "$schema {dialect} is not known here, but {known}", {"dialect": dialect, "known": known}
        )
    error = next(_DIALECTS[dialect].iter_errors(schema), None)
    if error is not None:
        raise PydanticCustomError(
            "invalid_schema",
            "this is no valid JSON Schema: at {place}: {problem}",
            {"place": ".".join(map(str, error.instance_path)) or "its root", "problem": error.message},
        )
    return schema


def parsed(value: Any) -> Any:
    """A schema that came as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        schema = json.loads(value)
        json.dumps(schema, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError("invalid_schema", "this is no JSON: {problem}", {"problem": str(error)}) from error
    if not isinstance(schema, dict):
        raise PydanticCustomError("invalid_schema", "a JSON Schema is an object here")
    return schema


def enforceable(grammar: Grammar) -> Grammar:
    """The grammar, if an answer can be held to it.

    Raises:
        PydanticCustomError: it cannot.
    """
    if not grammar.value:
        raise PydanticCustomError("invalid_grammar", "this is empty; leave it out for an answer in any form")
    if len(grammar.value) > MOST_CHARACTERS:
        raise PydanticCustomError(
            "invalid_grammar",
            "this has {count} characters; at most {most} can be checked",
            {"count": len(grammar.value), "most": MOST_CHARACTERS},
        )
    problem = refusal_of(grammar)
    if problem is not None:
        raise PydanticCustomError(
            "invalid_grammar", "this cannot be enforced: {problem}", {"problem": " ".join(problem.split())}
        )
    return grammar


def schema_grammar(schema: dict[str, Any]) -> Grammar:
    """The grammar of the JSON that a schema describes; properties come in the schema's order."""
    return Grammar("json_schema", json.dumps(rooted(schema), ensure_ascii=False))


def _enforceable_schema(schema: dict[str, Any]) -> dict[str, Any]:
    enforceable(schema_grammar(schema))
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(_valid_schema)]
"""A JSON Schema."""

EnforceableSchema = Annotated[JsonSchema, AfterValidator(_enforceable_schema)]
"""A JSON Schema that an answer can be held to."""

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""A name as the OpenAI API has it."""
