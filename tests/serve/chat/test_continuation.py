"""A plain continuation reads the same however the engine groups its tokens, with any tokenizer."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trillion_serve.chat.answer import AnswerDelta, AnswerRequest
from trillion_serve.chat.continuation import RawText, continuation, raw_prompt
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.engines.protocol import SamplingParams
from trillion_serve.errors import EngineError

TOKENIZERS = ["tokenizer", "text_tags_tokenizer", "byte_level_tokenizer"]
TEXTS = ["안녕 the fox.", "a\nb\n\n c\td", "é 각 👩‍👩‍👧 🇰🇷!", "<think>x</think>y", "", "  둘 \n"]


@pytest.fixture(params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> ChatTokenizer:
    return request.getfixturevalue(request.param)


def ids(tokenizer: ChatTokenizer, text: str) -> list[int]:
    return tokenizer.backend.encode(text, add_special_tokens=False).ids


def read(
    tokenizer: ChatTokenizer,
    tokens: Sequence[int],
    chunk: int,
    *,
    stop: tuple[str, ...] = (),
    max_tokens: int = 1000,
    prompt: Sequence[int] = (5,),
) -> list[AnswerDelta]:
    """The deltas of a continuation by these tokens and the end token."""
    sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=tokenizer.end_ids, top_logprobs=0)
    request = AnswerRequest("r", raw_prompt(tuple(prompt)), sampling, stop=stop)

    async def collect() -> list[AnswerDelta]:
        engine = FakeEngine(lambda _: [*tokens, *tokenizer.end_ids], chunk=chunk)
        deltas = continuation(engine, tokenizer, request, hidden_ids=tokenizer.hidden_ids)
        return [delta async for delta in deltas]

    return asyncio.run(collect())


def text_of(deltas: Sequence[AnswerDelta]) -> str:
    return "".join(delta.message.content for delta in deltas)


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_comes_out_as_it_went_in(any_tokenizer: ChatTokenizer, text: str) -> None:
    tokens = ids(any_tokenizer, text)
    for chunk in range(1, len(tokens) + 2):
        deltas = read(any_tokenizer, tokens, chunk)
        assert text_of(deltas) == text
        assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
        assert deltas[-1].tokens == len(tokens) + 1
        assert [entry.token_id for delta in deltas for entry in delta.logprobs] == [*tokens, any_tokenizer.end_ids[0]]


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.lists(st.integers(12, 400), max_size=24),
    stop=st.lists(st.text("안a. \n", min_size=1, max_size=3), max_size=2),
    max_tokens=st.integers(1, 30),
    chunk=st.integers(2, 30),
)
def test_any_grouping_of_any_tokens_reads_the_same(
    tokenizer: ChatTokenizer, tokens: list[int], stop: list[str], max_tokens: int, chunk: int
) -> None:
    def summary(size: int) -> tuple[str, str | None, int, list[int]]:
        deltas = read(tokenizer, tokens, size, stop=tuple(stop), max_tokens=max_tokens)
        entries = [entry.token_id for delta in deltas for entry in delta.logprobs]
        return text_of(deltas), deltas[-1].finish_reason, deltas[-1].tokens, entries

    assert summary(chunk) == summary(1)


def test_a_stop_string_may_begin_in_one_token_and_end_in_another(tokenizer: ChatTokenizer) -> None:
    tokens = ids(tokenizer, "하나 둘 셋 넷")
    for chunk in range(1, len(tokens) + 1):
        deltas = read(tokenizer, tokens, chunk, stop=("둘 셋",))
        assert (text_of(deltas), deltas[-1].finish_reason) == ("하나 ", "stop")
        assert deltas[-1].tokens < len(tokens)


def test_a_space_that_a_tokenizer_adds_after_a_newline_is_gone_after_the_prompt_s_too(
    doubling_tokenizer: ChatTokenizer,
) -> None:
    whole = ids(doubling_tokenizer, "a\nb\n\tc")
    for cut in range(1, len(whole)):
        prompt, rest = whole[:cut], whole[cut:]
        before = RawText(doubling_tokenizer)
        told = "".join(map(before.decode, prompt)) + before.flush()
        assert told + text_of(read(doubling_tokenizer, rest, 1, prompt=prompt)) == "a\nb\n\tc"


def test_an_engine_that_ends_without_saying_why_is_an_error(tokenizer: ChatTokenizer) -> None:
    request = AnswerRequest("r", raw_prompt((5,)), SamplingParams(max_tokens=9))

    async def aborted() -> None:
        engine = FakeEngine(lambda _: [20] * 9)
        async for _ in continuation(engine, tokenizer, request, hidden_ids=()):
            await engine.abort("r")

    with pytest.raises(EngineError, match="before its text was complete"):
        asyncio.run(aborted())
