"""What the content of an answer is made of when its form is not left to the model.

A call that must come is begun for the model, held to the schema of the function's arguments, and closed for it.
"""

import json
from collections.abc import Mapping
from typing import Any

from trillion_model.vaetki.chat_format import TOOL_CALL_END, TOOL_CALL_START
from trillion_serve.chat.answer import Constrained, Forced, Free, Segment
from trillion_serve.chat.references import rooted
from trillion_serve.chat.tools import ToolUse
from trillion_serve.engines.protocol import Grammar

_SPACING = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""Makes llguidance put spaces where the chat template puts them in the calls that a model learns from."""


def content_plan(grammar: Grammar | None, tools: ToolUse | None) -> tuple[Segment, ...]:
    """The parts of an answer's content, one after the other.

    Args:
        grammar: what the whole content must spell; it does not count where a call must come.
        tools: what may be called; where a call must come, and several may, others can follow it.
    """
    if tools is not None and tools.required:
        call = (Forced(TOOL_CALL_START), Constrained(call_grammar(tools.parameters)), Forced(TOOL_CALL_END))
        return (*call, Free()) if tools.parallel else call
    return (Free(),) if grammar is None else (Constrained(grammar),)


def call_grammar(parameters: Mapping[str, Mapping[str, Any]]) -> Grammar:
    """The JSON text of a call of one of these functions, the name first so that it can go out first."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{name}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name in parameters
    ]
    schemas = {name: rooted(schema, f"#/$defs/{name}") for name, schema in parameters.items()}
    schema = {**_SPACING, "anyOf": calls, "$defs": schemas}
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))
