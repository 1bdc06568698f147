"""One answer over an engine: what is done to it, and that nothing else is."""

import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from trillion_serve.chat.answer import (
    AnswerDelta,
    AnswerLimits,
    AnswerRequest,
    Constrained,
    Forced,
    Free,
    Intervention,
    answer,
)
from trillion_serve.chat.loops import LoopConfig
from trillion_serve.chat.message import MessageDelta
from trillion_serve.chat.render import Prompt
from trillion_serve.chat.thinking import ReasoningView, plan_of
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.chat.tools import ToolUse
from trillion_serve.engines.fake import FakeEngine, Loop, ScriptedReply
from trillion_serve.engines.protocol import GenerateRequest, Grammar, SamplingParams, TokenDelta
from trillion_serve.errors import EngineError

TOKENIZERS = ["tokenizer", "byte_level_tokenizer", "text_tags_tokenizer", "doubling_tokenizer"]
CHUNKS = [1, 2, 5, 1000]
OPENED, CLOSED, MODEL = "Q\n<think>\n", "Q\n<think>\n\n</think>\n\n", "Q\n"
TRANSITION = "So I answer."
JSON = Grammar("json_schema", '{"type": "integer"}')
LOOPS = LoopConfig(repeats=4, min_tokens=24, near_repeats=8, near_min_tokens=64, similarity=0.8)

Script = Mapping[str, "str | Iterable[int]"]


@pytest.fixture(params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> ChatTokenizer:
    """Each of the tokenizers: tags as special tokens, as plain tokens and as text, spaces doubled or not."""
    return request.getfixturevalue(request.param)


class Spoken(FakeEngine):
    """A fake engine that keeps what it was asked, and says what its script has for the end of the prompt.

    ``<|END|>`` at the end of a text ends the answer.
    """

    def __init__(self, tokenizer: ChatTokenizer, script: Script, **options: Any) -> None:
        self.asked: list[GenerateRequest] = []
        texts = {
            tuple(tokenizer.encode(ending)): tokenizer.encode(text) if isinstance(text, str) else text
            for ending, text in script.items()
        }
        scripted = ScriptedReply(texts)

        def reply(request: GenerateRequest) -> Iterable[int]:
            self.asked.append(request)
            return scripted(request)

        super().__init__(reply, **options)


def ask(tokenizer: ChatTokenizer, prompt: str, **options: Any) -> AnswerRequest:
    """A request; sampling options may be given among the others."""
    names = set(SamplingParams.__slots__) & set(options)
    sampling = SamplingParams(
        **{
            "max_tokens": 400,
            "stop_token_ids": tokenizer.end_ids,
            **{name: options.pop(name) for name in names},
        }
    )
    return AnswerRequest("a", Prompt(tuple(tokenizer.encode(prompt)), plan_of(prompt)), sampling, **options)


async def hear(engine: FakeEngine, tokenizer: ChatTokenizer, request: AnswerRequest) -> AnswerDelta:
    """The whole answer as one delta."""
    message, logprobs, finished = MessageDelta(), (), 0
    async for delta in answer(engine, tokenizer, request):
        message += delta.message
        logprobs += delta.logprobs
        finished += delta.finish_reason is not None
        last = delta
    assert finished == 1
    assert last.tokens <= request.sampling.max_tokens
    return replace(last, message=message, logprobs=logprobs)


async def say(tokenizer: ChatTokenizer, script: Script, prompt: str, **options: Any) -> AnswerDelta:
    """The answer of a script, whatever the chunks in which the engine gives it."""
    answers = [
        await hear(Spoken(tokenizer, script, chunk=chunk), tokenizer, ask(tokenizer, prompt, **options))
        for chunk in CHUNKS
    ]
    assert answers == [answers[0]] * len(answers)
    return answers[0]


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "content"),
    [
        (OPENED, "why\nso\n</think>\n\nfox. 안녕<|END|>", "why\nso", "fox. 안녕"),
        (CLOSED, "fox<|END|>", "", "fox"),
        (MODEL, "fox<|END|>", "", "fox"),
        (MODEL, "<think>\nwhy\n</think>\n\nfox<|END|>", "why", "fox"),
    ],
)
async def test_an_answer_that_needs_nothing_is_left_alone(
    any_tokenizer: ChatTokenizer, prompt: str, text: str, reasoning: str, content: str
) -> None:
    script = {prompt: text}
    heard = await say(any_tokenizer, script, prompt, limits=AnswerLimits(300, 20, TRANSITION, LOOPS, LOOPS))
    assert (heard.message.reasoning, heard.message.content.lstrip(" ")) == (reasoning, content)
    assert (heard.finish_reason, heard.interventions) == ("stop", ())
    engine = Spoken(any_tokenizer, script)
    await hear(engine, any_tokenizer, ask(any_tokenizer, prompt))
    assert len(engine.asked) == 1
    assert heard.tokens == len(any_tokenizer.encode(text))


@pytest.mark.parametrize("prompt", [OPENED, MODEL])
@pytest.mark.parametrize("budget", [1, 5, 30])
async def test_a_budget_ends_the_reasoning_with_a_sentence(
    any_tokenizer: ChatTokenizer, prompt: str, budget: int
) -> None:
    opening = "" if prompt is OPENED else "<think>\n"
    thought = "The quick brown fox jumps over the lazy dog. " * 20
    script = {prompt: opening + thought, "</think>\n\n": "fox<|END|>"}
    heard = await say(any_tokenizer, script, prompt, limits=AnswerLimits(budget, 20, TRANSITION))
    written, gap, transition = heard.message.reasoning.partition(TRANSITION)
    assert transition == ""
    assert gap == TRANSITION
    assert thought.startswith(written.strip())
    assert heard.message.content == "fox"
    assert heard.interventions == (Intervention.BUDGET,)
    assert heard.finish_reason == "stop"
    closing = len(any_tokenizer.encode(f"\n\n{TRANSITION}\n</think>"))
    assert 0 <= budget + closing - heard.reasoning_tokens <= 2


async def test_the_engine_goes_on_from_the_tokens_so_far(tokenizer: ChatTokenizer) -> None:
    thought = tokenizer.encode("The quick brown fox jumps over the lazy dog.")
    engine = Spoken(tokenizer, {OPENED: thought * 9, "</think>\n\n": "fox<|END|>"}, chunk=3)
    request = ask(tokenizer, OPENED, limits=AnswerLimits(4, 20, TRANSITION))
    heard = await hear(engine, tokenizer, request)
    forced = tokenizer.encode(f"\n\n{TRANSITION}\n</think>\n\n")
    assert [part.request_id for part in engine.asked] == ["a-0", "a-1"]
    assert engine.asked[1].prompt_token_ids == (*request.prompt.token_ids, *thought[:4], *forced)
    assert engine.asked[1].sampling.max_tokens == 400 - 4 - len(forced)
    assert heard.reasoning_tokens == 4 + len(forced) - len(tokenizer.encode("\n\n"))
    assert heard.tokens == 4 + len(forced) + len(tokenizer.encode("fox<|END|>"))
    assert engine.aborted == ["a-0"]


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
async def test_the_closing_tag_follows_the_newlines_that_are_there(tokenizer: ChatTokenizer, ending: str) -> None:
    thought = tokenizer.encode("fox" + ending)
    script = {OPENED: thought + tokenizer.encode("dog") * 99, "</think>\n\n": "fox<|END|>"}
    heard = await say(tokenizer, script, OPENED, limits=AnswerLimits(len(thought), 20, TRANSITION))
    assert heard.message.reasoning == f"fox\n\n{TRANSITION}"
    heard = await say(tokenizer, script, OPENED, limits=AnswerLimits(len(thought), 20))
    assert heard.message.reasoning == ("fox" if len(ending) < 2 else "fox\n")


async def test_a_budget_does_not_cut_a_character_in_two(tokenizer: ChatTokenizer) -> None:
    assert len(tokenizer.encode("뷁")) == 3
    script = {OPENED: tokenizer.encode("뷁" * 50), "</think>\n\n": "fox<|END|>"}
    heard = await say(tokenizer, script, OPENED, limits=AnswerLimits(5, 20, TRANSITION))
    assert heard.message.reasoning == f"뷁\n\n{TRANSITION}"


async def test_a_part_of_max_tokens_is_kept_for_the_answer(any_tokenizer: ChatTokenizer) -> None:
    script = {OPENED: Loop(any_tokenizer.encode("fox")), "</think>\n\n": Loop(any_tokenizer.encode("안녕"))}
    heard = await say(any_tokenizer, script, OPENED, max_tokens=64, limits=AnswerLimits(1000, 16, ""))
    assert heard.finish_reason == "length"
    assert heard.interventions == (Intervention.BUDGET,)
    assert heard.tokens == 64
    assert heard.tokens - heard.reasoning_tokens >= 16
    assert heard.message.content.startswith("안녕")


@pytest.mark.parametrize("max_tokens", range(2, 24))
async def test_no_limit_is_too_small_for_an_answer(any_tokenizer: ChatTokenizer, max_tokens: int) -> None:
    script = {OPENED: Loop(any_tokenizer.encode("fox ")), "</think>\n\n": Loop(any_tokenizer.encode("dog"))}
    heard = await say(any_tokenizer, script, OPENED, max_tokens=max_tokens, limits=AnswerLimits(1000, 2, TRANSITION))
    assert heard.message.content.strip()
    assert heard.finish_reason == "length"


async def test_a_model_that_ends_in_its_reasoning_is_made_to_answer(any_tokenizer: ChatTokenizer) -> None:
    script = {OPENED: "why<|END|>", "</think>\n\n": "fox<|END|>"}
    heard = await say(any_tokenizer, script, OPENED, limits=AnswerLimits(transition=TRANSITION))
    assert heard.message == MessageDelta("why", "fox")
    assert heard.interventions == (Intervention.RESCUE,)
    assert heard.finish_reason == "stop"


class Reluctant(Spoken):
    """Says what its script has, but for requests in which it may not end: then ``late``, and the script goes on."""

    def __init__(self, tokenizer: ChatTokenizer, script: Script, late: str, **options: Any) -> None:
        super().__init__(tokenizer, {**script, "": late}, **options)
        said = self._reply
        self._reply = lambda request: tokenizer.encode(late) if request.sampling.min_tokens else said(request)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Keep the requests that the script does not see."""
        if request.sampling.min_tokens:
            self.asked.append(request)
        async with aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                yield delta


@pytest.mark.parametrize("vain", ["", "\n", " \n \n", "<|role_start|>"])
@pytest.mark.parametrize("prompt", [OPENED, CLOSED, MODEL])
async def test_a_model_that_ends_without_an_answer_is_made_to_go_on(
    any_tokenizer: ChatTokenizer, prompt: str, vain: str
) -> None:
    thought = "why\n</think>\n\n" if prompt is OPENED else ""
    script = {prompt: f"{thought}{vain}<|END|>"}
    answers = []
    for chunk in CHUNKS:
        engine = Reluctant(any_tokenizer, script, "dog fox<|END|>", chunk=chunk)
        answers.append(await hear(engine, any_tokenizer, ask(any_tokenizer, prompt)))
        rescue = next(asked for asked in engine.asked if asked.sampling.min_tokens)
        banned = {token for token, bias in rescue.sampling.logit_bias.items() if bias == -100}
        assert banned >= any_tokenizer.hidden_ids - set(any_tokenizer.end_ids)
        assert banned >= set(any_tokenizer.encode(vain.strip(" "))) - {any_tokenizer.encode("x")[0]}
    assert answers == [answers[0]] * len(CHUNKS)
    assert answers[0].message.content.split() == ["dog", "fox"]
    assert answers[0].interventions == (Intervention.RESCUE,)


@pytest.mark.parametrize("vain", ["", "\n\n ", "<|role_end|>"])
async def test_the_last_resort_is_the_end_of_the_reasoning(any_tokenizer: ChatTokenizer, vain: str) -> None:
    script = {OPENED: f"first\n\nlast. two\n</think>\n\n{vain}<|END|>", "": "<|END|>"}
    heard = await say(any_tokenizer, script, OPENED)
    assert heard.message.reasoning == "first\n\nlast. two"
    assert heard.message.content.strip() == "last. two"
    assert heard.interventions == (Intervention.RESCUE,)
    heard = await say(any_tokenizer, script, OPENED, stop=(". ",))
    assert heard.message.content.strip() == "last"


async def test_the_transition_is_not_the_answer(tokenizer: ChatTokenizer) -> None:
    script = {OPENED: tokenizer.encode("fox " * 50), "</think>\n\n": "<|END|>"}
    heard = await say(tokenizer, script, OPENED, limits=AnswerLimits(2, 1, TRANSITION))
    assert heard.message == MessageDelta(f"fox fox\n\n{TRANSITION}", "fox fox")
    assert heard.interventions == (Intervention.BUDGET, Intervention.RESCUE)


async def test_text_that_was_held_back_is_an_answer(tokenizer: ChatTokenizer) -> None:
    heard = await say(tokenizer, {CLOSED: "fo<|END|>"}, CLOSED, stop=("fox",))
    assert heard.message.content == "fo"
    assert heard.interventions == ()


@pytest.mark.parametrize("prompt", [OPENED, CLOSED])
async def test_a_stop_string_at_the_beginning_leaves_nothing(any_tokenizer: ChatTokenizer, prompt: str) -> None:
    thought = "why fox\n</think>\n\n" if prompt is OPENED else ""
    heard = await say(any_tokenizer, {prompt: f"{thought}fox dog<|END|>"}, prompt, stop=("fox",))
    assert heard.message == MessageDelta("why fox" if thought else "", heard.message.content)
    assert heard.message.content.strip() == ""
    assert (heard.finish_reason, heard.interventions) == ("stop", ())


async def test_a_stop_token_of_the_clients_ends_the_content_but_not_the_reasoning(tokenizer: ChatTokenizer) -> None:
    comma = tokenizer.backend.token_to_id("<0x2C>")
    assert tokenizer.encode(",")[-1] == comma
    script = {OPENED: "one, two\n</think>\n\nfox, dog<|END|>"}
    stops = (*tokenizer.end_ids, comma)
    heard = await say(tokenizer, script, OPENED, stop_token_ids=stops, top_logprobs=0)
    assert heard.message == MessageDelta("one, two", "fox")
    assert heard.finish_reason == "stop"
    expected = tokenizer.encode("one, two\n</think>\n\nfox")
    assert [entry.token_id for entry in heard.logprobs] == expected
    assert heard.tokens == len(expected) + 1


async def test_with_the_end_token_ignored_the_answer_goes_to_its_limit(tokenizer: ChatTokenizer) -> None:
    text = tokenizer.encode("fox<|END|>dog")
    heard = await say(tokenizer, {CLOSED: Loop(text)}, CLOSED, stop_token_ids=(), max_tokens=50)
    assert (heard.tokens, heard.finish_reason) == (50, "length")
    assert heard.message.content.startswith("foxdogfox")


@pytest.mark.parametrize("prompt", [OPENED, MODEL])
async def test_a_loop_in_the_reasoning_ends_the_reasoning(any_tokenizer: ChatTokenizer, prompt: str) -> None:
    start = any_tokenizer.encode("<think>\n" if prompt is MODEL else "well ")
    loop = Loop(any_tokenizer.encode("No, wait. "), start)
    script = {prompt: loop, "</think>\n\n": "fox<|END|>"}
    limits = AnswerLimits(None, 20, TRANSITION, reasoning_loops=LOOPS)
    heard = await say(any_tokenizer, script, prompt, limits=limits)
    assert heard.message.content == "fox"
    assert heard.message.reasoning.endswith(TRANSITION)
    assert heard.interventions == (Intervention.REASONING_LOOP,)
    assert heard.finish_reason == "stop"
    assert heard.tokens < 150


async def test_a_loop_in_the_answer_ends_it(any_tokenizer: ChatTokenizer) -> None:
    loop = Loop(any_tokenizer.encode("fox and dog. "), any_tokenizer.encode("why\n</think>\n\n"))
    limits = AnswerLimits(reasoning_loops=LOOPS, content_loops=LOOPS)
    heard = await say(any_tokenizer, {OPENED: loop}, OPENED, limits=limits)
    assert heard.interventions == (Intervention.CONTENT_LOOP,)
    assert heard.finish_reason == "stop"
    assert heard.message.content.split()[:6] == ["fox", "and", "dog.", "fox", "and", "dog."]
    assert heard.tokens < 150
    unwatched = await say(any_tokenizer, {OPENED: loop}, OPENED, max_tokens=200)
    assert (unwatched.finish_reason, unwatched.interventions, unwatched.tokens) == ("length", (), 200)


async def test_a_loop_of_nothing_visible_does_not_count_as_an_answer(tokenizer: ChatTokenizer) -> None:
    script = {CLOSED: Loop(tokenizer.encode("\n \n"))}
    heard = await say(tokenizer, script, CLOSED, limits=AnswerLimits(content_loops=LOOPS), max_tokens=300)
    assert heard.interventions == (Intervention.CONTENT_LOOP, Intervention.RESCUE)


class Obedient(Spoken):
    """Writes ``42`` where a grammar binds, and what its script has elsewhere."""

    def __init__(self, tokenizer: ChatTokenizer, script: Script, **options: Any) -> None:
        super().__init__(tokenizer, script, **options)
        said = self._reply

        def reply(request: GenerateRequest) -> Iterable[int]:
            if request.sampling.grammar is None:
                return said(request)
            self.asked.append(request)
            return [*tokenizer.encode("42"), *tokenizer.end_ids[:1]]

        self._reply = reply


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning"),
    [
        (OPENED, "why\n</think>\n\nnever", "why"),
        (OPENED, "why</think>\n\nnever", "why"),
        (OPENED, "why\n</think>never", "why"),
        (OPENED, "why<|END|>", "why"),
        (MODEL, "<think>\nwhy\n</think>\n\nnever", "why"),
        (MODEL, "\n <think>why</think>never", "why"),
        (MODEL, "never", ""),
        (MODEL, "\n\nnever", ""),
        (MODEL, "<|END|>", ""),
        (CLOSED, "never", ""),
    ],
)
async def test_a_grammar_binds_after_the_reasoning(
    any_tokenizer: ChatTokenizer, prompt: str, text: str, reasoning: str
) -> None:
    answers = []
    for chunk in CHUNKS:
        engine = Obedient(any_tokenizer, {prompt: text}, chunk=chunk)
        request = ask(any_tokenizer, prompt, content=(Constrained(JSON),), min_tokens=3)
        answers.append(await hear(engine, any_tokenizer, request))
        assert [part.sampling.grammar for part in engine.asked][-1] == JSON
        assert all(part.sampling.grammar is None for part in engine.asked[:-1])
        assert engine.asked[-1].sampling.min_tokens == 0
        if reasoning:
            shown = any_tokenizer.backend.decode(
                list(engine.asked[-1].prompt_token_ids[-12:]), skip_special_tokens=False
            )
            assert shown.replace("\n ", "\n").endswith("</think>\n\n")
    assert answers == [answers[0]] * len(CHUNKS)
    assert answers[0].message.reasoning.strip(" ") == reasoning
    assert answers[0].message.content.strip(" ") == "42"
    assert answers[0].finish_reason == "stop"


async def test_a_grammar_binds_when_the_budget_is_spent(any_tokenizer: ChatTokenizer) -> None:
    engine = Obedient(any_tokenizer, {OPENED: Loop(any_tokenizer.encode("fox "))})
    request = ask(any_tokenizer, OPENED, content=(Constrained(JSON),), limits=AnswerLimits(9, 20, TRANSITION))
    heard = await hear(engine, any_tokenizer, request)
    assert heard.message.content == "42"
    assert heard.message.reasoning.endswith(TRANSITION)
    assert heard.interventions == (Intervention.BUDGET,)


async def test_an_answer_that_a_grammar_leaves_empty_is_not_rescued(tokenizer: ChatTokenizer) -> None:
    engine = Spoken(tokenizer, {CLOSED: "<|END|>"})
    heard = await hear(engine, tokenizer, ask(tokenizer, CLOSED, content=(Constrained(Grammar("regex", "a*")),)))
    assert (heard.message, heard.interventions, len(engine.asked)) == (MessageDelta(), (), 1)


async def test_parts_of_the_content_may_be_written_for_the_model(tokenizer: ChatTokenizer) -> None:
    calls = ToolUse({"f": {"type": "object"}}, required=True, parallel=True)
    segments = (Forced("<tool_call>"), Constrained(JSON), Forced("</tool_call>"), Free())
    call = tokenizer.encode('{"name": "f", "arguments": {"a": 1}}')

    class Calling(Spoken):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
            if request.sampling.grammar is not None:
                self.asked.append(request)
                yield TokenDelta((*call, *tokenizer.end_ids), finish_reason="stop")
                return
            async for delta in super().generate(request):
                yield delta

    engine = Calling(tokenizer, {OPENED: "why\n</think>\n\n", "</tool_call>": "<|END|>"})
    heard = await hear(engine, tokenizer, ask(tokenizer, OPENED, content=segments, tools=calls))
    assert heard.message.reasoning == "why"
    assert heard.message.content.strip() == ""
    assert [piece.name for piece in heard.message.tool_calls if piece.name] == ["f"]
    assert "".join(piece.arguments for piece in heard.message.tool_calls) == '{"a": 1}'
    assert (heard.finish_reason, heard.interventions) == ("tool_calls", ())
    assert engine.asked[1].prompt_token_ids[-1:] == tuple(tokenizer.encode("<tool_call>"))


@pytest.mark.parametrize("chunk", CHUNKS)
async def test_logprobs_are_of_the_tokens_that_the_model_chose(tokenizer: ChatTokenizer, chunk: int) -> None:
    thought = tokenizer.encode("The quick brown fox. ") * 9
    engine = Spoken(tokenizer, {OPENED: thought, "</think>\n\n": "fox<|END|>"}, chunk=chunk)
    request = ask(tokenizer, OPENED, limits=AnswerLimits(6, 20, TRANSITION), top_logprobs=1)
    heard = await hear(engine, tokenizer, request)
    assert [entry.token_id for entry in heard.logprobs] == [*thought[:6], *tokenizer.encode("fox")]
    assert {entry.logprob for entry in heard.logprobs} == {math.log(0.5)}


@pytest.mark.parametrize("segment", [Free(), Constrained(JSON)])
async def test_logprobs_hold_the_closing_tag(tokenizer: ChatTokenizer, segment: Any) -> None:
    engine = Obedient(tokenizer, {OPENED: "why\n</think>\n\n42<|END|>"})
    request = ask(tokenizer, OPENED, content=(segment,), top_logprobs=0)
    shown = [entry.token_id for entry in (await hear(engine, tokenizer, request)).logprobs]
    newlines = tokenizer.encode("\n\n") if segment == Free() else []
    assert shown == [*tokenizer.encode("why\n</think>"), *newlines, *tokenizer.encode("42")]


@pytest.mark.parametrize(
    ("view", "reasoning", "content"),
    [
        (ReasoningView(), "one two", "fox"),
        (ReasoningView(streamed=False), "one two", "fox"),
        (ReasoningView(returned=False), "", "fox"),
        (ReasoningView(separate=False), "", "<think>\none two\n</think>\n\nfox"),
        (ReasoningView(separate=False, streamed=False), "", "<think>\none two\n</think>\n\nfox"),
    ],
)
async def test_a_client_sees_what_it_asked_to_see(
    any_tokenizer: ChatTokenizer, view: ReasoningView, reasoning: str, content: str
) -> None:
    text = "one two\n</think>\n\nfox<|END|>"
    heard = await say(any_tokenizer, {OPENED: text}, OPENED, view=view)
    assert heard.message == MessageDelta(reasoning, content)
    assert heard.reasoning_tokens == len(any_tokenizer.encode("one two\n</think>"))
    nothing = await say(any_tokenizer, {CLOSED: "fox<|END|>"}, CLOSED, view=view)
    assert nothing.message == MessageDelta("", "fox")


async def test_reasoning_that_is_not_streamed_comes_in_one_piece(tokenizer: ChatTokenizer) -> None:
    engine = Spoken(tokenizer, {OPENED: "one two three\n</think>\n\nfox dog<|END|>"})
    request = ask(tokenizer, OPENED, view=ReasoningView(streamed=False))
    seen = [delta.message async for delta in answer(engine, tokenizer, request) if delta.message]
    assert seen[0] == MessageDelta("one two three")
    assert all(not message.reasoning for message in seen[1:])
    assert len(seen) > 2


@pytest.mark.parametrize("parts", [1, 2])
async def test_closing_the_answer_aborts_it_in_the_engine(tokenizer: ChatTokenizer, parts: int) -> None:
    script = {OPENED: Loop(tokenizer.encode("fox ")), "</think>\n\n": Loop(tokenizer.encode("dog "))}
    engine = Spoken(tokenizer, script)
    request = ask(tokenizer, OPENED, limits=AnswerLimits(5, 20, TRANSITION))
    async with aclosing(answer(engine, tokenizer, request)) as deltas:
        async for delta in deltas:
            if bool(delta.message.content) == (parts == 2):
                break
    assert engine.running == set()
    assert engine.aborted == [f"a-{part}" for part in range(parts)]


async def test_an_engine_that_ends_without_a_reason_is_an_error(tokenizer: ChatTokenizer) -> None:
    class Broken(Spoken):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
            yield TokenDelta((5,))

    with pytest.raises(EngineError, match="a-0"):
        await hear(Broken(tokenizer, {}), tokenizer, ask(tokenizer, CLOSED))


async def test_a_context_that_ends_in_the_reasoning_still_gives_an_answer(tokenizer: ChatTokenizer) -> None:
    engine = Spoken(tokenizer, {OPENED: Loop(tokenizer.encode("fox "))}, context_length=40)
    heard = await hear(engine, tokenizer, ask(tokenizer, OPENED))
    assert heard.message.content.startswith("fox")
    assert (heard.finish_reason, heard.interventions) == ("length", (Intervention.RESCUE,))


TEXTS = st.lists(
    st.sampled_from(
        ["fox", " ", "\n", "안녕", "뷁", "<think>", "</think>", "</th", "<|END|>", "<|role_start|>", "no. "]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", TOKENIZERS)
async def test_whatever_the_model_says_chunks_do_not_matter_and_limits_hold(
    request: pytest.FixtureRequest, name: str, data: st.DataObject
) -> None:
    tokenizer = request.getfixturevalue(name)
    prompt = data.draw(st.sampled_from([OPENED, CLOSED, MODEL]))
    script = {prompt: data.draw(TEXTS) + "<|END|>", "</think>\n\n": data.draw(TEXTS) + "<|END|>", "": "<|END|>"}
    heard = await say(
        tokenizer,
        script,
        prompt,
        max_tokens=data.draw(st.integers(1, 60)),
        limits=AnswerLimits(data.draw(st.none() | st.integers(1, 20)), 1, data.draw(st.sampled_from(["", "no. "]))),
        content=data.draw(st.sampled_from([(Free(),), (Forced("fox"), Free()), (Constrained(JSON),)])),
        stop=data.draw(st.sampled_from([(), ("no",), ("\n",)])),
        view=ReasoningView(separate=data.draw(st.booleans()), streamed=data.draw(st.booleans())),
        top_logprobs=0,
    )
    assert 0 <= heard.reasoning_tokens <= heard.tokens
