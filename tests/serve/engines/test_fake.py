"""The fake engine keeps the promises that the protocol makes, so that tests over it mean something."""

from contextlib import aclosing

import pytest

from trillion_serve.engines.fake import FakeEngine
from trillion_serve.engines.protocol import Engine, GenerateRequest, SamplingParams, TokenDelta
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
    for failing in (anext(deltas), engine.health(), engine.score([1, 2]), everything(engine, request())):
        with pytest.raises(EngineDeadError):
            await failing


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
