"""What the content of an answer is made of when its form is not left to the model.

A call that must come is begun for the model, held to the schema of the function's arguments, and closed for it.
Where a form is asked for beside tools, one grammar takes calls or a text of the form, and the model chooses.
"""

import json
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher, grammar_from

from trillion_model.vaetki.chat_format import TOOL_CALL_END, TOOL_CALL_START
from trillion_serve.chat.answer import Constrained, Forced, Free, Segment
from trillion_serve.chat.references import rooted
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.chat.tools import ToolUse
from trillion_serve.engines.protocol import Grammar

_SPACING = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""Makes llguidance put spaces where the chat template puts them in the calls that a model learns from."""
_NO_SPACE = {"x-guidance": {"whitespace_flexible": False}}
"""How our engines are told to write JSON; a grammar that has it in a part has to say so itself."""
_DIALECT = "%llguidance {}"
"""Says whose Lark a grammar is in: xgrammar reads it too, and takes ``{}`` alone for an object of any properties."""


def content_plan(grammar: Grammar | None, tools: ToolUse | None) -> tuple[Segment, ...]:
    """The parts of an answer's content, one after the other.

    Args:
        grammar: what the whole content must spell; beside tools, ``calls_or_form`` makes it one that takes calls.
        tools: what may be called; where a call must come, and several may, others can follow it.
    """
    if grammar is None and tools is not None and tools.required:
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


def calls_or_form(form: Grammar, tools: ToolUse, tokenizer: ChatTokenizer) -> Grammar:
    """A grammar of calls of these functions, or else of a text of this form; of calls alone where one must come.

    Args:
        form: what content without calls must spell.
        tools: what may be called; several calls may follow one another if they may be parallel.
        tokenizer: of the model, for its tags: the text of a special token is none to an engine's grammar.
    """
    start, end = (_tag(tag, tokenizer) for tag in (TOOL_CALL_START, TOOL_CALL_END))
    rules = [
        _DIALECT,
        "start: calls" if tools.required else "start: calls | form",
        r'calls: call ("\n"? call)*' if tools.parallel else "calls: call",
        rf'call: {start} "\n"? object "\n"? {end}',
        f"object: %json {call_grammar(tools.parameters).value}",
    ]
    return Grammar("ebnf", "\n".join(rules if tools.required else [*rules, f"form: {_in_lark(form)}"]))


def _tag(tag: str, tokenizer: ChatTokenizer) -> str:
    """A tag in Lark notation: a token by its id, or text where the tag is several."""
    ids = tokenizer.encode(tag)
    return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(tag)


def _in_lark(grammar: Grammar) -> str:
    """A grammar as a part of one in Lark notation."""
    if grammar.kind == "json_schema":
        return f"%json {json.dumps({**_NO_SPACE, **json.loads(grammar.value)}, ensure_ascii=False)}"
    if grammar.kind == "regex":
        (part,) = json.loads(LLMatcher.grammar_from_regex(grammar.value))["grammars"]
        return f"%lark {{\n{part['lark_grammar']}\n}}"
    return f"%lark {{\n{grammar_from('grammar', grammar.value)}\n}}"
