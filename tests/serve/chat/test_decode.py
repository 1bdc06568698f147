"""Tokens to reasoning and content: every boundary, every convention, every tokenizer."""

import re
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trillion_serve.chat.decode import ChatDecoder, ReasoningSplitter, StopStrings
from trillion_serve.chat.message import MessageDelta
from trillion_serve.chat.overlap import longest_overlap
from trillion_serve.chat.render import Prompt
from trillion_serve.chat.text import SpaceAfterNewline, TextDecoder
from trillion_serve.chat.thinking import Opening, plan_of
from trillion_serve.chat.tokenizer import ChatTokenizer

OPENED = plan_of("a\n<think>\n")
OPENED_ON_THE_LINE = plan_of("a\n<think>")
CLOSED = plan_of("<think>\n\n</think>\n\n")
MODEL = plan_of("assistant\n")

ANSWERS = [
    (OPENED, "why\nso\n</think>\n\n답 한", "why\nso", "답 한"),
    (OPENED, "\nwhy\n\n</think>\n\n\n답", "\nwhy\n", "\n답"),
    (OPENED, "why</think>답", "why", "답"),
    (OPENED, "\n</think>\n\n답", "", "답"),
    (OPENED, "why <think> not\n</think>\n\n답", "why <think> not", "답"),
    (OPENED, "cut off\n", "cut off\n", ""),
    (OPENED_ON_THE_LINE, "\nwhy\n</think>\n답", "why", "답"),
    (CLOSED, "답\n", "", "답\n"),
    (CLOSED, "\n답", "", "\n답"),
    (MODEL, "<think>\nwhy\n</think>\n\n답", "why", "답"),
    (MODEL, "\n <think>why</think>답", "why", "답"),
    (MODEL, "<think>\n\n</think>\n\n답", "", "답"),
    (MODEL, " 답 <thi", "", " 답 <thi"),
    (MODEL, "답 <think>no</think>", "", "답 <think>no</think>"),
    (MODEL, "\n ", "", "\n "),
]


def read(tokenizer: ChatTokenizer, plan, tokens: list[int], cuts: list[int] = (), stop=()) -> MessageDelta:
    """Decode tokens in the chunks that ``cuts`` makes of them, and see that runs of them come to the same."""
    decoder, by_runs = (ChatDecoder(tokenizer, Prompt((), plan), stop) for _ in range(2))
    total = totalled = MessageDelta()
    for start, end in pairwise([0, *cuts, len(tokens)]):
        total += decoder.decode(tokens[start:end])
        for is_mark, group in groupby(tokens[start:end], tokenizer.mark_ids.__contains__):
            run = list(group)
            while run and (is_mark or not by_runs.reads_runs):
                totalled += by_runs.decode([run.pop(0)])
            totalled += by_runs.decode_run(run) if run else MessageDelta()
    total += decoder.flush()
    assert totalled + by_runs.flush() == total
    assert (by_runs.tokens, by_runs.reasoning_tokens) == (decoder.tokens, decoder.reasoning_tokens)
    return total


@pytest.mark.parametrize(("plan", "text", "reasoning", "content"), ANSWERS)
def test_tags_as_tokens_cut_between_any_two_tokens(
    tokenizer: ChatTokenizer, plan, text: str, reasoning: str, content: str
) -> None:
    tokens = tokenizer.encode(text)
    for cut in range(len(tokens) + 1):
        assert read(tokenizer, plan, tokens, [cut]) == MessageDelta(reasoning, content)


@pytest.mark.parametrize(("plan", "text", "reasoning", "content"), ANSWERS)
def test_tags_as_text_of_several_tokens(
    text_tags_tokenizer: ChatTokenizer, plan, text: str, reasoning: str, content: str
) -> None:
    assert text_tags_tokenizer.think_end_id is None
    tokens = text_tags_tokenizer.encode(text)
    assert read(text_tags_tokenizer, plan, tokens, range(len(tokens))) == MessageDelta(reasoning, content)


@pytest.mark.parametrize(("plan", "text", "reasoning", "content"), ANSWERS)
def test_tags_as_text_cut_between_any_characters(plan, text: str, reasoning: str, content: str) -> None:
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            splitter = ReasoningSplitter(plan, start="<think>", end="</think>")
            total = MessageDelta()
            for piece in (text[:first], text[first:second], text[second:]):
                total += splitter.text(piece)
            assert total + splitter.flush() == MessageDelta(reasoning, content)


def test_spelling_a_tag_out_does_not_end_reasoning_when_the_tag_is_a_token(tokenizer: ChatTokenizer) -> None:
    spelled = tokenizer.encode(tokenizer.guard("write </think> here"))
    assert tokenizer.think_end_id not in spelled
    assert read(tokenizer, OPENED, spelled) == MessageDelta(reasoning="write </think> here")


def test_control_tokens_are_not_shown_but_tool_tags_are(tokenizer: ChatTokenizer) -> None:
    tokens = tokenizer.encode("a<|role_start|><tool_call>{}</tool_call><|END|>")
    assert read(tokenizer, CLOSED, tokens) == MessageDelta(content="a<tool_call>{}</tool_call>")


def test_reasoning_tokens_are_counted_up_to_the_closing_tag(tokenizer: ChatTokenizer) -> None:
    reasoning, answer = tokenizer.encode("생각\n</think>"), tokenizer.encode("\n\n답<|END|>")
    decoder = ChatDecoder(tokenizer, Prompt((), OPENED))
    decoder.decode([*reasoning, *answer])
    assert (decoder.reasoning_tokens, decoder.tokens) == (len(reasoning), len(reasoning) + len(answer))


def test_the_context_keeps_the_first_space(doubling_tokenizer: ChatTokenizer) -> None:
    backend = doubling_tokenizer.backend
    piece = min(token for token in backend.get_vocab() if token.startswith("▁") and len(token) > 2)
    word, text = backend.token_to_id(piece), piece.replace("▁", " ")
    assert TextDecoder(backend).decode(word) == text[1:]
    assert TextDecoder(backend, doubling_tokenizer.encode("over")).decode(word) == text


@settings(deadline=None)
@given(data=st.data())
def test_any_tokens_read_together_say_what_they_say_one_by_one(doubling_tokenizer: ChatTokenizer, data) -> None:
    vocabulary = doubling_tokenizer.backend.get_vocab()
    bytes_of_characters = [vocabulary[f"<0x{byte:02X}>"] for byte in "한🙂".encode()]
    tokens = data.draw(st.lists(st.sampled_from(bytes_of_characters) | st.sampled_from(sorted(vocabulary.values()))))
    cut = data.draw(st.integers(0, len(tokens)))
    one_by_one, together = (TextDecoder(doubling_tokenizer.backend) for _ in range(2))
    expected = "".join(map(one_by_one.decode, tokens)) + one_by_one.flush()
    runs = together.decode_run(tokens[:cut]) + together.decode_run(tokens[cut:])
    assert runs + together.flush() == expected


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_broken_byte_after_a_byte_that_is_a_space_is_one_broken_character(
    doubling_tokenizer: ChatTokenizer, cut: int
) -> None:
    tokens = [doubling_tokenizer.backend.token_to_id(name) for name in ("<unk>", "<0x20>", "<0xED>")]
    decoder = TextDecoder(doubling_tokenizer.backend)
    assert decoder.decode_run(tokens[:cut]) + decoder.decode_run(tokens[cut:]) + decoder.flush() == "<unk> \ufffd"


TEXTS = st.text(alphabet=st.sampled_from("가나힣뷁 aé\n\t한🙂👩‍👩‍👧\u1100\u1161<|"), max_size=30)


@settings(deadline=None)
@given(text=TEXTS, data=st.data())
@pytest.mark.parametrize("name", ["tokenizer", "byte_level_tokenizer"])
def test_any_text_comes_back_in_any_chunks(
    request: pytest.FixtureRequest, name: str, text: str, data: st.DataObject
) -> None:
    tokenizer = request.getfixturevalue(name)
    tokens = tokenizer.encode(tokenizer.guard(text))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=5)))
    assert read(tokenizer, CLOSED, tokens, cuts) == MessageDelta(content=text)


@settings(deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["tokenizer", "byte_level_tokenizer", "text_tags_tokenizer"])
def test_any_tokens_read_the_same_in_any_chunks(request: pytest.FixtureRequest, name: str, data: st.DataObject) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = st.integers(0, tokenizer.backend.get_vocab_size() - 1)
    tokens = data.draw(st.lists(ids, max_size=40))
    plan = data.draw(st.sampled_from([OPENED, CLOSED, MODEL]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=5)))
    stop = data.draw(st.lists(st.sampled_from(["a", " ", "\ufffd", "ab", "bc"]), max_size=2))
    assert read(tokenizer, plan, tokens, cuts, stop) == read(tokenizer, plan, tokens, (), stop)


def test_an_unfinished_character_becomes_one_mark_at_the_end(tokenizer: ChatTokenizer) -> None:
    tokens = tokenizer.encode("뷁뷁")
    assert len(tokens) == 6
    decoder = TextDecoder(tokenizer.backend)
    assert [decoder.decode(token) for token in tokens[:5]] == ["", "", "뷁", "", ""]
    assert decoder.flush() == "\ufffd\ufffd"


def test_broken_bytes_do_not_wait_forever(tokenizer: ChatTokenizer) -> None:
    broken = tokenizer.backend.token_to_id("<0xFF>")
    decoder = TextDecoder(tokenizer.backend)
    shown = "".join(decoder.decode(token) for token in [broken] * 40)
    assert shown == "\ufffd" * 40
    assert decoder.decode(tokenizer.encode("안")[0]) == "안"


def test_a_chain_of_tokens_that_all_end_within_a_character(byte_level_tokenizer: ChatTokenizer) -> None:
    tokens = byte_level_tokenizer.encode("뷁힣뷁힣")
    assert len(tokens) == 12
    decoder = TextDecoder(byte_level_tokenizer.backend)
    assert "".join(decoder.decode(token) for token in tokens) == "뷁힣뷁힣"


@pytest.mark.parametrize("text", ["one\ntwo\n\n  three\tfour", "가\n 나", "\n\t x"])
def test_a_space_that_the_tokenizer_adds_is_removed(doubling_tokenizer: ChatTokenizer, text: str) -> None:
    assert doubling_tokenizer.doubles_spaces
    tokens = doubling_tokenizer.encode(text)
    assert read(doubling_tokenizer, plan_of("x"), tokens).content.lstrip(" ") == text


def test_the_space_quirk_is_not_assumed_of_other_tokenizers(
    tokenizer: ChatTokenizer, byte_level_tokenizer: ChatTokenizer
) -> None:
    assert not tokenizer.doubles_spaces
    assert not byte_level_tokenizer.doubles_spaces


@given(pieces=st.lists(st.text(alphabet=" \n\ta", max_size=6), max_size=6), after=st.booleans())
def test_spaces_after_newlines_go_in_any_chunks(pieces: list[str], after: bool) -> None:
    spaces = SpaceAfterNewline(after_newline=after)
    whole = ("\n" if after else "") + "".join(pieces)
    expected = re.sub(r"(?<=[\n\t]) ", "", whole)
    assert "".join(map(spaces.decode, pieces)) == expected[after:]


@given(
    text=st.text(alphabet="abc", max_size=20),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    size=st.integers(1, 5),
)
def test_stop_strings_cut_where_a_reference_says(text: str, stops: list[str], size: int) -> None:
    ends = [(end, end - len(s)) for end in range(len(text) + 1) for s in stops if text[:end].endswith(s)]
    expected = text[: min(ends)[1]] if ends else text
    cutter = StopStrings(stops)
    got = "".join(cutter.decode(text[i : i + size]) for i in range(0, len(text), size)) + cutter.flush()
    assert (got, cutter.found) == (expected, bool(ends))


def test_stop_strings_are_not_searched_in_reasoning(tokenizer: ChatTokenizer) -> None:
    tokens = tokenizer.encode("하나. 둘.\n</think>\n\n셋. 넷.")
    decoder = ChatDecoder(tokenizer, Prompt((), OPENED), [". "])
    assert decoder.decode(tokens) + decoder.flush() == MessageDelta("하나. 둘.", "셋")
    assert decoder.stopped
    assert decoder.tokens < len(tokens)


def test_a_stop_string_that_does_not_come_is_given_back(tokenizer: ChatTokenizer) -> None:
    assert read(tokenizer, CLOSED, tokenizer.encode("끝 EN"), stop=["END"]).content == "끝 EN"


@pytest.mark.parametrize(
    ("text", "words", "whole", "size"),
    [("abc", ["cd"], False, 1), ("abc", ["bcd", "cd"], False, 2), ("ab", ["ab"], False, 0), ("ab", ["ab"], True, 2)],
)
def test_overlap(text: str, words: list[str], whole: bool, size: int) -> None:
    assert longest_overlap(text, words, whole=whole) == size


@pytest.mark.parametrize(
    ("prompt", "opening", "newline_written"),
    [
        ("x<think>\n", Opening.PROMPT, True),
        ("x<think>", Opening.PROMPT, False),
        ("<think>\n\n</think>\n\n", Opening.CLOSED, True),
        ("x\n", Opening.MODEL, False),
    ],
)
def test_the_plan_is_read_off_the_prompt(prompt: str, opening: Opening, newline_written: bool) -> None:
    plan = plan_of(prompt)
    assert (plan.opening, plan.newline_written) == (opening, newline_written)
