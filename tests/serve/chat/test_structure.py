"""What content is made of, and that the grammar of a call takes calls and nothing else."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from trillion_serve.chat.answer import Constrained, Forced, Free
from trillion_serve.chat.structure import content_plan
from trillion_serve.chat.tools import ToolUse
from trillion_serve.engines.protocol import Grammar

GRAMMAR = Grammar("regex", "a+")
CLOSED: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TREE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"tree": {"$ref": "#/$defs/마디 1"}, "$ref": {"type": "integer"}, "data": {"const": {"$ref": "#/x"}}},
    "required": ["tree"],
    "additionalProperties": False,
    "$defs": {
        "마디 1": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "inner": {"type": "array", "items": {"$ref": "#/$defs/마디 1"}}},
            "required": ["name", "inner"],
            "additionalProperties": False,
        }
    },
}


def takes(schema: str, text: str) -> bool:
    """Whether llguidance, which enforces grammars in our engines, takes a text as the whole of what is described."""
    tokens = LLTokenizer("byte")
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_json_schema(schema), log_level=0)
    return matcher.consume_tokens(tokens.tokenize_bytes(text.encode())) and matcher.is_accepting()


def call_schema(parameters: dict[str, Any]) -> str:
    (_, constrained, *_) = content_plan(None, ToolUse(parameters, required=True))
    assert isinstance(constrained, Constrained) and constrained.grammar.kind == "json_schema"
    return constrained.grammar.value


def test_content_is_free_unless_a_form_is_asked_for() -> None:
    assert content_plan(None, None) == (Free(),)
    assert content_plan(None, ToolUse({"f": CLOSED})) == (Free(),)
    assert content_plan(GRAMMAR, None) == (Constrained(GRAMMAR),)


@pytest.mark.parametrize(("parallel", "rest"), [(True, (Free(),)), (False, ())])
def test_a_call_that_must_come_is_begun_and_closed(parallel: bool, rest: tuple[Free, ...]) -> None:
    start, constrained, end, *after = content_plan(None, ToolUse({"f": CLOSED}, required=True, parallel=parallel))
    assert (start, end, tuple(after)) == (Forced("<tool_call>"), Forced("</tool_call>"), rest)
    assert isinstance(constrained, Constrained)


@pytest.mark.parametrize(
    ("call", "fits"),
    [
        ({"name": "f", "arguments": {"tree": {"name": '뿌리 "x"\n', "inner": [{"name": "", "inner": []}]}}}, True),
        ({"name": "f", "arguments": {"tree": {"name": "", "inner": []}, "$ref": 3}}, True),
        ({"name": "f", "arguments": {"tree": {"name": "", "inner": []}, "data": {"$ref": "#/x"}}}, True),
        ({"name": "g", "arguments": {}}, True),
        ({"name": "f", "arguments": {"tree": {"name": "", "inner": [3]}}}, False),
        ({"name": "f", "arguments": {}}, False),
        ({"name": "g", "arguments": {"tree": {"name": "", "inner": []}}}, False),
        ({"name": "h", "arguments": {}}, False),
        ({"arguments": {}, "name": "g"}, False),
        ({"name": "g"}, False),
        ({"name": "g", "arguments": {}, "more": 1}, False),
    ],
)
def test_a_call_names_a_function_first_and_then_arguments_of_its_own_schema(call: dict[str, Any], fits: bool) -> None:
    """References into the schema of the arguments hold, and names and constants that look like some are let be."""
    assert takes(call_schema({"f": TREE, "g": CLOSED}), json.dumps(call, ensure_ascii=False)) is fits


def test_spaces_stand_where_the_chat_template_puts_them() -> None:
    schema = call_schema({"f": {"type": "object", "properties": {"a": {}, "b": {}}}})
    call = {"name": "f", "arguments": {"a": 1, "b": [1, 2]}}
    assert takes(schema, json.dumps(call))
    assert not takes(schema, json.dumps(call, separators=(",", ":")))
    assert not takes(schema, json.dumps(call, indent=1))
