"""Text to content and tool calls: every form that models write, every boundary, nothing lost."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trillion_model.vaetki.chat_format import TOOL_CALL_END as END
from trillion_model.vaetki.chat_format import TOOL_CALL_START as START
from trillion_serve.chat.decode import ChatDecoder
from trillion_serve.chat.message import MessageDelta, ToolCallDelta
from trillion_serve.chat.render import Prompt
from trillion_serve.chat.thinking import plan_of
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.chat.tools import ToolCallDecoder, ToolUse

USE = ToolUse({"f": {}, "날씨": {}})
CLOSED, OPENED = plan_of("<think>\n\n</think>\n\n"), plan_of("a\n<think>\n")


def read(text: str, cuts: list[int] = (), use: ToolUse = USE) -> MessageDelta:
    """Decode a text in the pieces that ``cuts`` makes of it."""
    decoder = ToolCallDecoder(use)
    total = MessageDelta()
    for start, end in pairwise([0, *cuts, len(text)]):
        total += decoder.decode(text[start:end])
    return total + decoder.flush()


def said(delta: MessageDelta) -> tuple[str, list[tuple[str | None, str]]]:
    """Content, and each call's name and arguments."""
    calls: list[tuple[str | None, str]] = []
    for piece in delta.tool_calls:
        if piece.index == len(calls):
            calls.append((piece.name, piece.arguments))
        else:
            assert (piece.id, piece.name) == (None, None)
            calls[piece.index] = (calls[piece.index][0], calls[piece.index][1] + piece.arguments)
    return delta.content, calls


def call(arguments: str = "{}", name: str = "f") -> str:
    return f'{START}{{"name": "{name}", "arguments": {arguments}}}{END}'


TRICKY = (
    r'{"a": "}{][ \" \\", "태그": "</tool_call><tool_call>", '
    r'"b": [1, {"c": {}}], "한": "\uc548\ud83d\ude00녕 \n😀"}'
)

CALLS = {
    "a call": (call('{"a": 1}'), "", [("f", '{"a": 1}')]),
    "no arguments": (call("{}"), "", [("f", "{}")]),
    "nested brackets, tags and quotes in strings, escapes": (call(TRICKY), "", [("f", TRICKY)]),
    "space around the JSON": (
        f'{START}\n {{ "name" : "f" ,\n "arguments" : {{ "a" : 1 }} }} \n{END}',
        "",
        [("f", '{ "a" : 1 }')],
    ),
    "arguments called parameters": (f'{START}{{"name":"f","parameters":{{"a":1}}}}{END}', "", [("f", '{"a":1}')]),
    "arguments before the name": (f'{START}{{"arguments":{{"a":1}},"name":"f"}}{END}', "", [("f", '{"a":1}')]),
    "arguments as a JSON string": (call(r'"{\"a\": \"\ud55c\\n글\"}"'), "", [("f", r'{"a": "한\n글"}')]),
    "an empty string of arguments": (call('""'), "", [("f", "{}")]),
    "null for arguments": (call("null"), "", [("f", "{}")]),
    "arguments left out": (f'{START}{{"name": "f"}}{END}', "", [("f", "{}")]),
    "other keys": (
        f'{START}{{"type": "function", "n": [1], "name": "f", "x": {{"name": "g"}}, "arguments": {{}}, "i": 3}}{END}',
        "",
        [("f", "{}")],
    ),
    "keys that come twice": (
        f'{START}{{"name": "f", "name": "g", "arguments": {{}}, "parameters": {{"a": 1}}}}{END}',
        "",
        [("f", "{}")],
    ),
    "an escaped name": (call(name=r"\ub0a0\uc528"), "", [("날씨", "{}")]),
    "two calls": (call('{"a": 1}') + "\n \n" + call(name="날씨"), "", [("f", '{"a": 1}'), ("날씨", "{}")]),
    "text on all sides": (
        f"앞 \n{call()}\n사이\n{call()} 뒤\n",
        "앞\n사이 뒤\n",
        [("f", "{}"), ("f", "{}")],
    ),
    "space behind the last call": (call() + "\n\n", "", [("f", "{}")]),
    "no closing tag": (call().removesuffix(END), "", [("f", "{}")]),
    "half a closing tag": (call().removesuffix("call>"), "", [("f", "{}")]),
    "text for a closing tag": (call().removesuffix(END) + " done", " done", [("f", "{}")]),
    "no closing brace": (f'{START}{{"name": "f", "arguments": {{"a": 1}}{END}', "", [("f", '{"a": 1}')]),
    "a tag before the tag": (START + call(), START, [("f", "{}")]),
}

TEXTS = {
    "text": "답 \n",
    "half a tag": "답 <tool_",
    "no JSON": f"{START}날씨(){END}",
    "not an object": f'{START}["f"]{END}',
    "no function that was offered": call(name="g"),
    "no name": f'{START}{{"arguments": {{}}}}{END}',
    "a name that is no string": f'{START}{{"name": 5, "arguments": {{}}}}{END}',
    "a name with a broken escape": f'{START}{{"name": "\\f\\q", "arguments": {{}}}}{END}',
    "a key with a broken escape": f'{START}{{"\\q": 1, "name": "f"}}{END}',
    "no quotes": f"{START}{{name: f}}{END}",
    "no value": f'{START}{{"name": , "arguments": {{}}}}{END}',
    "no comma": f'{START}{{"x": 1 "name": "f"}}{END}',
    "nothing": f"{START}{END}",
    "an empty object": f"{START}{{}}{END}",
    "cut off before the name is whole": f'앞\n{START}{{"name": "f',
    "cut off in arguments before the name": f'{START}{{"arguments": {{"name": "f"',
    "wrong arguments before the name": f'{START}{{"arguments": {{a}}, "name": "f"}}{END}',
    "a list for arguments before the name": f'{START}{{"arguments": [1], "name": "f"}}{END}',
    "a closing tag alone": END,
}


@pytest.mark.parametrize(("text", "content", "calls"), CALLS.values(), ids=CALLS)
def test_calls_cut_anywhere(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert said(read(text)) == (content, calls)
    assert said(read(text, list(range(1, len(text))))) == (content, calls)
    for cut in range(len(text) + 1):
        assert said(read(text, [cut])) == (content, calls), cut


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_no_call_stays_content(text: str) -> None:
    assert said(read(text)) == (text, [])
    for cut in range(len(text) + 1):
        assert said(read(text, [cut])) == (text, []), cut


def test_a_call_after_what_is_none() -> None:
    text = call(name="g") + "\n" + call('{"a": 1}')
    assert said(read(text)) == (call(name="g"), [("f", '{"a": 1}')])


STANDING = {
    "cut off in the arguments": ('{"name": "f", "arguments": {"a": "한', '{"a": "한', ""),
    "cut off before the arguments": ('{"name": "f", "argum', "", ""),
    "arguments that are no JSON": ('{"name": "f", "arguments": {a: 1}}' + END, "{a: 1}", ""),
    "arguments that are no object": ('{"name": "f", "arguments": [1]}' + END, "[1]", ""),
    "arguments that are a number": ('{"name": "f", "arguments": 12}' + END, "12", ""),
    "text behind the name": ('{"name": "f" oops}' + END, "", "oops}" + END),
}


@pytest.mark.parametrize(("text", "arguments", "content"), STANDING.values(), ids=STANDING)
def test_a_call_whose_name_has_gone_out_stands_with_the_arguments_as_written(
    text: str, arguments: str, content: str
) -> None:
    for cut in range(len(START + text) + 1):
        assert said(read(START + text, [cut])) == (content, [("f", arguments)]), cut


def test_the_name_goes_out_first_and_arguments_as_they_come() -> None:
    decoder = ToolCallDecoder(USE)
    assert not decoder.decode(START + '{"name": "f')
    (named,) = decoder.decode('"').tool_calls
    assert (named.index, named.name, named.arguments) == (0, "f", "")
    assert re.fullmatch(r"call_[0-9a-f]{24}", named.id or "")
    assert not decoder.decode(', "arguments": ')
    assert decoder.decode('{"a').tool_calls == (ToolCallDelta(0, arguments='{"a'),)
    assert decoder.decode('": 1}}').tool_calls == (ToolCallDelta(0, arguments='": 1}'),)
    assert not decoder.decode("</tool_call>") and not decoder.flush()


def test_every_call_has_an_id_of_its_own() -> None:
    pieces = read(call() * 3).tool_calls
    assert [piece.index for piece in pieces] == [0, 1, 2]
    assert len({piece.id for piece in pieces}) == 3


def test_without_parallel_calls_the_first_one_ends_the_content() -> None:
    one = ToolUse({"f": {}}, parallel=False)
    assert said(read("앞" + call() + call() + "뒤", use=one)) == ("앞", [("f", "{}")])
    decoder = ToolCallDecoder(one)
    decoder.decode(call()[:-1])
    assert not decoder.full
    decoder.decode(call()[-1:])
    assert decoder.full


OR_FORM = ToolUse({"f": {}}, or_form=True)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (call() + "\n" + call('{"a": 1}'), "", [("f", "{}"), ("f", '{"a": 1}')]),
        (f"\n {call()}", "", [("f", "{}")]),
        (f' {{"a": "{START}"}}', f' {{"a": "{START}"}}', []),
        (f"예{call()}", f"예{call()}", []),
        (f"<tool{call()}", f"<tool{call()}", []),
        ("<tool_cal", "<tool_cal", []),
        ("", "", []),
    ],
)
def test_what_has_a_form_and_begins_with_no_call_has_none(
    text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    for cut in range(len(text) + 1):
        assert said(read(text, [cut], use=OR_FORM)) == (content, calls), cut


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text() | st.sampled_from(["name", START, END]), json_values, max_size=4)


@settings(deadline=None)
@given(st.lists(arguments, min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 1]), st.data())
def test_any_arguments_in_any_pieces(
    written: list[dict[str, Any]], ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    texts = [json.dumps(one, ensure_ascii=ascii_only, indent=indent) for one in written]
    text = "\n".join(call(one) for one in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    content, calls = said(read(text, cuts))
    assert content == ""
    assert calls == [("f", one) for one in texts]
    assert [json.loads(one) for _, one in calls] == written


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [START, END, '{"name"', ': "f"', '"g"', ', "arguments"', ": ", '{"a": 1}', "}", "{", '"', "\\", " "]
        )
        | st.text(max_size=3),
        max_size=14,
    ),
    st.data(),
)
def test_any_text_reads_the_same_in_any_pieces(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert said(read(text, cuts)) == said(read(text))
    if not read(text).tool_calls:
        assert read(text).content == text


def decode(
    tokenizer: ChatTokenizer, text: str, *, plan: Any = CLOSED, stop: tuple[str, ...] = (), size: int = 1
) -> tuple[str, str, list[tuple[str | None, str]]]:
    """Reasoning, content and calls of an answer that comes in chunks of so many tokens."""
    decoder = ChatDecoder(tokenizer, Prompt((), plan), stop, USE)
    tokens = tokenizer.encode(text)
    total = MessageDelta()
    for at in range(0, len(tokens), size):
        total += decoder.decode(tokens[at : at + size])
    total += decoder.flush()
    return total.reasoning, *said(total)


@pytest.mark.parametrize("which", ["tokenizer", "text_tags_tokenizer", "byte_level_tokenizer", "doubling_tokenizer"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_with_any_tokenizer(which: str, size: int, request: pytest.FixtureRequest) -> None:
    tokenizer: ChatTokenizer = request.getfixturevalue(which)
    written = r'{"도시": "서울", "a": "\ub300\n"}'
    assert decode(tokenizer, f"찾아 보죠.\n{call(written)}", size=size) == ("", "찾아 보죠.", [("f", written)])


def test_calls_in_the_reasoning_are_reasoning(tokenizer: ChatTokenizer) -> None:
    answer = decode(tokenizer, f"생각 {call()}\n</think>\n\n{call()}", plan=OPENED)
    assert answer == (f"생각 {call()}", "", [("f", "{}")])


def test_a_stop_string_ends_a_call_too(tokenizer: ChatTokenizer) -> None:
    assert decode(tokenizer, call('{"a": "b STOP c"}'), stop=("STOP",)) == ("", "", [("f", '{"a": "b ')])
    assert decode(tokenizer, f"앞{START}STOP", stop=("STOP",)) == ("", f"앞{START}", [])
    assert decode(tokenizer, "앞 <tool STOP", stop=("STOP",)) == ("", "앞 <tool ", [])


def test_without_tools_a_call_is_content(tokenizer: ChatTokenizer) -> None:
    decoder = ChatDecoder(tokenizer, Prompt((), CLOSED))
    assert decoder.decode(tokenizer.encode(call())) + decoder.flush() == MessageDelta(content=call())


def test_a_decoder_stops_after_the_only_call(tokenizer: ChatTokenizer) -> None:
    decoder = ChatDecoder(tokenizer, Prompt((), CLOSED), tools=ToolUse({"f": {}}, parallel=False))
    tokens = tokenizer.encode(call())
    delta = decoder.decode([*tokens, *tokenizer.encode(call() + "뒤")])
    assert decoder.stopped and decoder.tokens == len(tokens)
    assert said(delta + decoder.flush()) == ("", [("f", "{}")])


def test_pieces_of_one_call_are_joined_and_those_of_others_are_not() -> None:
    first, more, other = ToolCallDelta(0, "id", "f", "{"), ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "i", "g")
    total = MessageDelta(tool_calls=(first,)) + MessageDelta(tool_calls=(more, other))
    assert total.tool_calls == (ToolCallDelta(0, "id", "f", "{}"), other)
