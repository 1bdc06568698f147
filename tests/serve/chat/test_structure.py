"""What content is made of, and that the grammar of a call takes calls and nothing else."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, grammar_from
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from trillion_model.vaetki.chat_format import EOS, TOOL_CALL_END, TOOL_CALL_START
from trillion_serve.chat.answer import Constrained, Forced, Free
from trillion_serve.chat.structure import calls_or_form, content_plan
from trillion_serve.chat.tokenizer import ChatTokenizer
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
    for required in (False, True):
        assert content_plan(GRAMMAR, ToolUse({"f": CLOSED}, required=required)) == (Constrained(GRAMMAR),)


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


CITY = {
    "type": "object",
    "properties": {"도시": {"type": "string"}},
    "required": ["도시"],
    "additionalProperties": False,
}
CALL = '<tool_call>{"name": "f", "arguments": {"도시": "서울 \\"특별시\\" </tool_call>"}}</tool_call>'
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
JSON = '{"도시":"부산 😀 <tool_call>"}'
USE = ToolUse({"f": CITY, "now": CLOSED})


@pytest.fixture(params=["special tokens", "tokens", "text"])
def tags_as(
    request: pytest.FixtureRequest, tokenizer: ChatTokenizer, byte_level_tokenizer: ChatTokenizer
) -> ChatTokenizer:
    """A tokenizer of each kind: what the tags of tool calls are in it."""
    if request.param == "special tokens":
        return tokenizer
    backend = Tokenizer.from_str(byte_level_tokenizer.backend.to_str())
    if request.param == "tokens":
        backend.add_tokens([AddedToken(tag, special=False) for tag in (TOOL_CALL_START, TOOL_CALL_END)])
    return ChatTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS))


def follows(tokenizer: ChatTokenizer, grammar: Grammar, answer: str) -> bool:
    """Whether an engine with this tokenizer lets a model write an answer, to its end. Tags in strings are text."""
    assert grammar.kind == "ebnf"
    matcher = LLMatcher(LLTokenizer(tokenizer.backend.to_str()), grammar_from("ebnf", grammar.value), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    pieces = re.split(r"(<tool_call>(?=\s*\{)|(?<=[}\n])</tool_call>)", answer)
    tokens = tokenizer.encode("".join(part if at % 2 else tokenizer.guard(part) for at, part in enumerate(pieces)))
    return matcher.consume_tokens(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("answer", "several", "one", "must_call"),
    [
        (CALL, True, True, True),
        (NOW, True, True, True),
        (NOW.replace("{", "\n{", 1).replace("}<", "}\n<"), True, True, True),
        (CALL + NOW, True, False, True),
        (f"{CALL}\n{NOW}\n{CALL}", True, False, True),
        (JSON, True, True, False),
        (CALL + JSON, False, False, False),
        (JSON + CALL, False, False, False),
        (JSON + JSON, False, False, False),
        ("찾아 보겠습니다.\n" + CALL, False, False, False),
        (CALL + "\n", False, False, False),
        (CALL.removesuffix("</tool_call>"), False, False, False),
        (CALL.replace("도시", "시"), False, False, False),
        (NOW.replace("now", "later"), False, False, False),
        (JSON.replace(":", ": "), False, False, False),
        ("{}", False, False, False),
        ("", False, False, False),
    ],
)
def test_beside_a_form_an_answer_is_calls_or_has_the_form(
    tags_as: ChatTokenizer, answer: str, several: bool, one: bool, must_call: bool
) -> None:
    form = Grammar("json_schema", json.dumps(CITY, ensure_ascii=False))
    for use, fits in [(USE, several), (replace(USE, parallel=False), one), (replace(USE, required=True), must_call)]:
        assert follows(tags_as, calls_or_form(form, use, tags_as), answer) is fits


@pytest.mark.parametrize(
    ("form", "fitting", "other"),
    [
        (Grammar("json_schema", '{"x-guidance": {"whitespace_flexible": true}}'), '{\n "가": [1]}', "가"),
        (Grammar("regex", r"[가-힣]+/\d{2}\n|}"), "서울/12\n", "서울/12"),
        (Grammar("regex", r"(예\.)|(a\|b)"), "a|b", "a"),
        (Grammar("ebnf", 'root ::= "예" | x\nx ::= "아니오" [.}]'), "아니오}", "아니오"),
        (Grammar("ebnf", '%llguidance {}\nstart: "예" | x\nx: /[가-힣}]+\\// "{"'), "아}/{", "아/"),
    ],
)
def test_every_kind_of_form_stands_beside_calls(
    tokenizer: ChatTokenizer, form: Grammar, fitting: str, other: str
) -> None:
    grammar = calls_or_form(form, USE, tokenizer)
    assert [follows(tokenizer, grammar, text) for text in (fitting, other, CALL, NOW + CALL)] == [
        True,
        False,
        True,
        True,
    ]
