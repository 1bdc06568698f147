"""Our parsers in SGLang: reasoning between think tags, calls between tool tags, whole and in pieces."""

import json

import jsonschema
import pytest
from sglang.srt.entrypoints.openai.protocol import Function, Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.function_call.utils import _get_tool_schema
from sglang.srt.parser.reasoning_parser import ReasoningParser

from trillion_serve.plugins.sglang import parsers

parsers.register()

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
ADD = Tool(type="function", function=Function(name="add", parameters={"type": "object"}))


def streamed(parser: ReasoningParser, text: str) -> tuple[str, str]:
    """Reasoning and answer of text that comes a character at a time."""
    parts = [*(parser.parse_stream_chunk(character) for character in text), parser.parse_stream_end()]
    return "".join(reasoning or "" for reasoning, _ in parts), "".join(answer or "" for _, answer in parts)


@pytest.mark.parametrize(
    ("opened_by_the_prompt", "text", "expected"),
    [
        (True, "생각\n</think>답", ("생각\n", "답")),
        (True, "<think>생각</think>답", ("생각", "답")),
        (False, "<think>생각</think>답", ("생각", "답")),
        (False, "답", ("", "답")),
        (True, "끝나지 않은 생각", ("끝나지 않은 생각", "")),
        (True, f"생각{CALL}", ("생각", CALL)),
    ],
)
def test_reasoning_ends_at_its_tag_or_at_a_call(opened_by_the_prompt, text, expected):
    def parser() -> ReasoningParser:
        return ReasoningParser(parsers.NAME, force_reasoning=opened_by_the_prompt)

    whole = parser().parse_non_stream(text)
    assert tuple(part or "" for part in whole) == expected
    assert streamed(parser(), text) == expected


def test_with_tools_the_answer_begins_at_once():
    parser = ReasoningParser(parsers.NAME, force_reasoning=True, tool_call_parser_active=True)
    assert streamed(parser, "답") == ("", "답")


def test_calls_are_taken_out_of_the_answer():
    text, calls = FunctionCallParser([ADD], parsers.NAME).parse_non_stream(f"먼저.{CALL}\n{CALL}")
    assert text == "먼저."
    assert [(call.name, json.loads(call.parameters)) for call in calls] == [("add", {"a": 1, "b": 2})] * 2


@pytest.mark.parametrize("other", [1, {"name": "add"}, {"name": "add", "parameters": {}, "note": ""}])
def test_the_schema_of_a_call_that_must_come_admits_nothing_else(other):
    schema = parsers.close(_get_tool_schema(ADD))
    jsonschema.validate({"name": "add", "parameters": {}}, schema)
    assert not jsonschema.Draft202012Validator(schema).is_valid(other)


def test_a_call_streams():
    parser = FunctionCallParser([ADD], parsers.NAME)
    calls = [call for character in CALL for call in parser.parse_stream_chunk(character)[1]]
    assert [call.name for call in calls if call.name] == ["add"]
    assert json.loads("".join(call.parameters for call in calls if call.parameters)) == {"a": 1, "b": 2}
