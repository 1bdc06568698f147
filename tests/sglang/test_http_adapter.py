"""The HTTP adapter against a real SGLang server, with a tiny VAETKI of random weights and our plugin."""

import asyncio
import json
import re
from collections.abc import Awaitable
from contextlib import aclosing

import jsonschema
import pytest

from support import adapter_answers
from support.adapter_answers import (
    CITY,
    assert_a_prompt_is_cached_the_second_time,
    assert_answers_and_scores_are_the_models,
    assert_stop_tokens_end_an_answer,
    text_within,
    tokens,
)
from support.sglang_server import CONTEXT, POOL, SglangServer
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.http import HttpOptions
from trillion_serve.engines.http_sglang import SglangHttpEngine
from trillion_serve.engines.protocol import GenerateRequest, Grammar, SamplingParams, TokenDelta
from trillion_serve.errors import EngineError, RequestRefusedError

pytestmark = pytest.mark.engine

PROMPT = tuple(range(20, 180))


@pytest.fixture(scope="module")
def server(serving) -> SglangServer:
    return serving("vaetki")


@pytest.fixture
async def engine(server: SglangServer):
    """The adapter, connected."""
    connected = await SglangHttpEngine.connect(HttpOptions(url=server.url))
    yield connected
    await connected.close()


async def answer(engine, request_id: str, prompt=PROMPT, **sampling) -> list[TokenDelta]:
    return await adapter_answers.answer(engine, request_id, prompt, **sampling)


async def test_answers_and_log_probabilities_are_the_models_own(models, engine):
    await assert_answers_and_scores_are_the_models(engine, models["vaetki"], PROMPT)


async def test_a_second_time_the_prompt_is_cached(engine):
    await assert_a_prompt_is_cached_the_second_time(engine, PROMPT)


async def test_stop_tokens_end_an_answer_and_come_with_it(engine):
    await assert_stop_tokens_end_an_answer(engine, PROMPT)


async def test_what_sglang_cannot_run_is_refused_and_it_goes_on(engine):
    with pytest.raises(RequestRefusedError, match="context length"):
        await answer(engine, "long", tuple(range(20, 20 + CONTEXT - 30)) * 2)
    with pytest.raises(RequestRefusedError, match="token id 512 is out of vocabulary: the model knows 0 to 511"):
        await answer(engine, "unknown", (5, 512))
    with pytest.raises(RequestRefusedError, match="token id 99999"):
        await engine.score((5, 99_999))
    assert len(tokens(await answer(engine, "afterwards"))) == 12


@pytest.mark.parametrize("stop_token_ids", [(3,), (7,)])
async def test_an_answer_keeps_to_its_grammar_and_ends_with_it(engine, tokenizer_dir, stop_token_ids):
    tokenizer = ChatTokenizer.load(str(tokenizer_dir))

    def text(grammar: Grammar, seed: int) -> Awaitable[str]:
        return text_within(engine, grammar, tokenizer.backend, PROMPT, stop_token_ids, seed)

    for seed in range(2):
        jsonschema.validate(json.loads(await text(Grammar("json_schema", json.dumps(CITY)), seed)), CITY)
        assert re.fullmatch("[가-힣]{2,4}시", await text(Grammar("regex", "[가-힣]{2,4}시"), seed))


async def test_a_grammar_that_cannot_be_enforced_is_refused(engine):
    with pytest.raises(RequestRefusedError):
        await answer(engine, "refused", grammar=Grammar("regex", "(a"))
    assert len(tokens(await answer(engine, "afterwards"))) == 12


@pytest.mark.parametrize(
    ("grammar", "spelled"),
    [
        (Grammar("regex", "[가나]{2}[<]tool_call></think>"), r"[가나]{2}<tool_call></think>"),
        (Grammar("json_schema", '{"enum": ["<tool_call>"]}'), '"<tool_call>"'),
        (Grammar("ebnf", 'root ::= "<think>" [12]'), "<think>[12]"),
    ],
)
async def test_the_text_of_a_control_token_is_spelled_by_ordinary_ones(engine, tokenizer_dir, grammar, spelled):
    deltas = await answer(engine, "spelled", grammar=grammar, max_tokens=60, stop_token_ids=(3,))
    assert deltas[-1].finish_reason == "stop"
    backend = ChatTokenizer.load(str(tokenizer_dir)).backend
    assert re.fullmatch(spelled, backend.decode(list(tokens(deltas)), skip_special_tokens=True))


async def test_a_grammar_that_breaks_ends_its_request_only(engine):
    # llguidance finds only as it goes that so many texts are in question at once.
    rules = [f'r{n} ::= "가" s{n}\ns{n} ::= "나" "{n}"' for n in range(2500)]
    grammar = Grammar("ebnf", "\n".join(["root ::= " + " | ".join(f"r{n}" for n in range(2500)), *rules]))
    other = asyncio.create_task(answer(engine, "other", max_tokens=40))
    with pytest.raises(EngineError) as refusal:
        await answer(engine, "broken", grammar=grammar)
    assert re.search(r"cannot be followed.*Current row has \d+ items[^\n]*$", str(refusal.value)[:400])
    assert len(tokens(await other)) == 40


async def test_info_and_stats_are_what_sglang_tells(engine, checkpoints):
    assert engine.info.engine == "sglang 0.5.23"
    assert engine.info.model == str(checkpoints["vaetki"])
    assert (engine.info.context_length, engine.info.kv_capacity_tokens) == (CONTEXT, POOL)
    assert engine.info.dtype == "float32"
    stats = await engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_leaving_stops_the_request_in_sglang(engine, how):
    params = SamplingParams(max_tokens=400, temperature=1.0)
    async with aclosing(engine.generate(GenerateRequest(f"left by {how}", PROMPT[:8], params))) as deltas:
        await anext(deltas)
        if how == "abort":
            await engine.abort(f"left by {how}")
            assert [delta async for delta in deltas] == []
    for _ in range(60):
        if (await engine.stats()).running == 0:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("it goes on")
