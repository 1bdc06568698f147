"""The fake engine keeps the promises that the protocol makes, so that tests over it mean something."""

import asyncio
import threading
from contextlib import aclosing
from dataclasses import replace

import pytest

from trillion_serve.engines.fake import FakeEngine, Loop, ScriptedReply
from trillion_serve.engines.protocol import Engine, EngineStats, GenerateRequest, Grammar, SamplingParams, TokenDelta
from trillion_serve.errors import EngineDeadError, RequestRefusedError


def request(**sampling: object) -> GenerateRequest:
    return GenerateRequest("r", (1, 2, 3), SamplingParams(**{"max_tokens": 10, **sampling}))  # type: ignore[arg-type]


async def everything(engine: Engine, asked: GenerateRequest) -> list[TokenDelta]:
    return [delta async for delta in engine.generate(asked)]


@pytest.mark.parametrize(
    ("sampling", "tokens", "finish_reason"),
    [
        ({}, [7, 8, 9, 4, 7], "stop"),
        ({"stop_token_ids": (4,)}, [7, 8, 9, 4], "stop"),
        ({"max_tokens": 2}, [7, 8], "length"),
        ({"max_tokens": 4, "stop_token_ids": (4,)}, [7, 8, 9, 4], "stop"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 100])
async def test_the_reply_is_cut_as_a_models_would_be(
    sampling: dict, tokens: list[int], finish_reason: str, chunk: int
) -> None:
    deltas = await everything(FakeEngine(lambda _: [7, 8, 9, 4, 7], chunk=chunk), request(**sampling))
    assert [token for delta in deltas for token in delta.token_ids] == tokens
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [finish_reason]


async def test_closing_the_generator_aborts_the_request() -> None:
    engine = FakeEngine(lambda _: range(100))
    async with aclosing(engine.generate(request(max_tokens=100))) as deltas:
        await anext(deltas)
        assert engine.running == {"r"}
    assert (engine.running, engine.aborted) == (set(), ["r"])


async def test_an_aborted_request_ends_without_a_reason() -> None:
    engine = FakeEngine(lambda _: range(100))
    deltas = engine.generate(request(max_tokens=100))
    assert (await anext(deltas)).finish_reason is None
    await engine.abort("r")
    assert [delta async for delta in deltas] == []


async def test_a_killed_engine_fails_what_is_under_way_and_what_comes() -> None:
    engine = FakeEngine(lambda _: range(100))
    deltas = engine.generate(request(max_tokens=100))
    await anext(deltas)
    engine.kill()
    for failing in (
        anext(deltas),
        engine.health(),
        engine.stats(),
        engine.score([1, 2]),
        everything(engine, request()),
    ):
        with pytest.raises(EngineDeadError):
            await failing


async def test_it_dies_in_the_middle_of_an_answer() -> None:
    engine = FakeEngine(lambda _: range(100), dies_after=2)
    deltas = engine.generate(request(max_tokens=100))
    assert [(await anext(deltas)).token_ids for _ in range(2)] == [(0,), (1,)]
    with pytest.raises(EngineDeadError):
        await anext(deltas)
    with pytest.raises(EngineDeadError):
        await engine.health()


async def test_it_hangs_until_it_is_released_from_any_thread() -> None:
    engine = FakeEngine(lambda _: [7, 8])
    engine.hang()
    waiting = asyncio.create_task(everything(engine, request()))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert (done, engine.running) == (set(), {"r"})
    threading.Timer(0.01, engine.release).start()
    assert [delta.token_ids for delta in await waiting] == [(7,), (8,)]


async def test_it_hangs_in_the_middle_and_the_request_can_be_aborted() -> None:
    engine = FakeEngine(lambda _: range(100))
    deltas = engine.generate(request(max_tokens=100))
    await anext(deltas)
    engine.hang()
    rest = asyncio.create_task(anext(deltas, None))
    await asyncio.sleep(0.02)
    await engine.abort("r")
    assert await rest is None


async def test_only_the_first_token_is_slow() -> None:
    loop = asyncio.get_running_loop()
    times = [loop.time()]
    async for _ in FakeEngine(lambda _: [7, 8], first_token_delay=0.1).generate(request()):
        times.append(loop.time())
    assert times[1] - times[0] >= 0.1


async def test_a_loop_goes_on_to_max_tokens_or_the_end_of_the_context() -> None:
    engine = FakeEngine(lambda _: Loop([5, 6], start=[1]), context_length=9, chunk=100)
    (cut,) = await everything(engine, request(max_tokens=4))
    assert (cut.token_ids, cut.finish_reason) == ((1, 5, 6, 5), "length")
    (full,) = await everything(engine, request(max_tokens=1000))
    assert (full.token_ids, full.finish_reason) == ((1, 5, 6, 5, 6, 5), "length")


THINK_END, END = 50, 51


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ((1, 2, 3), (10, 20, 21, 20, 21, 20)),
        ((1, 2, 3, 10, 20), (21, 20, 21, 20, 21, 20)),
        ((1, 2, 3, 10, 20, 21, THINK_END), (30, 31, 32, END)),
        ((1, 2, 3, 10, 20, 21, 99, THINK_END, 30, 31), (32, END)),
    ],
    ids=["from the start", "the loop goes on", "after forced tokens", "in the middle of what follows them"],
)
async def test_a_script_is_continued_from_wherever_a_prompt_ends(
    prompt: tuple[int, ...], reply: tuple[int, ...]
) -> None:
    engine = FakeEngine(ScriptedReply({(): Loop([20, 21], [10]), (THINK_END,): [30, 31, 32, END]}), chunk=100)
    asked = replace(request(max_tokens=6, stop_token_ids=(END,)), prompt_token_ids=prompt)
    (delta,) = await everything(engine, asked)
    assert delta.token_ids == reply


async def test_a_prompt_that_is_not_in_the_script_is_refused() -> None:
    with pytest.raises(RequestRefusedError, match="nothing to say after"):
        await everything(FakeEngine(ScriptedReply({(9,): [1]})), request())


async def test_its_figures_are_those_of_the_requests_under_way() -> None:
    engine = FakeEngine(lambda _: range(100), context_length=100)
    assert await engine.stats() == EngineStats(kv_cache_usage=0.0, running=0, waiting=0)
    async with aclosing(engine.generate(request(max_tokens=50))) as deltas:
        await anext(deltas)
        assert await engine.stats() == EngineStats(kv_cache_usage=4 / 1600, running=1, waiting=0)
    assert (await engine.stats()).running == 0


async def test_the_reply_sees_the_grammar() -> None:
    engine = FakeEngine(lambda asked: [1] if asked.sampling.grammar is None else [2])
    grammar = Grammar("regex", "a+")
    assert [delta.token_ids for delta in await everything(engine, request(grammar=grammar))] == [(2,)]
    for refused in ({"grammar": Grammar("ebnf", "")}, {"grammar": grammar, "min_tokens": 1}):
        with pytest.raises(RequestRefusedError, match="leave"):
            await everything(engine, request(**refused))


async def test_logprobs_and_scores_have_one_entry_a_token() -> None:
    engine = FakeEngine(lambda _: [7, 8])
    deltas = await everything(engine, request(top_logprobs=3))
    assert [(entry.token_id, len(entry.top)) for delta in deltas for entry in delta.logprobs or ()] == [(7, 3), (8, 3)]
    assert [entry.token_id for entry in await engine.score([1, 2, 3])] == [2, 3]


async def test_what_cannot_run_is_refused() -> None:
    engine = FakeEngine(lambda _: [7], context_length=3)
    with pytest.raises(RequestRefusedError):
        await everything(engine, request())
    with pytest.raises(RequestRefusedError):
        await engine.score([])
