"""The HTTP adapter against a real SGLang server, with a tiny VAETKI of random weights and our plugin."""

import asyncio
import json
import re
from contextlib import aclosing

import jsonschema
import pytest
import torch

from support.sglang_server import CONTEXT, POOL, SglangServer
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.http import HttpOptions
from trillion_serve.engines.http_sglang import SglangHttpEngine
from trillion_serve.engines.protocol import GenerateRequest, Grammar, SamplingParams, TokenDelta, TokenLogprob
from trillion_serve.errors import RequestRefusedError

pytestmark = pytest.mark.engine

PROMPT = tuple(range(20, 180))
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["서울", "부산"]}, "name": {"type": "string", "maxLength": 8}},
    "required": ["city", "name"],
    "additionalProperties": False,
}


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
    params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0} | sampling)
    async with aclosing(engine.generate(GenerateRequest(request_id, prompt, params))) as deltas:
        return [delta async for delta in deltas]


def tokens(deltas: list[TokenDelta]) -> tuple[int, ...]:
    return sum((delta.token_ids for delta in deltas), ())


def assert_scores(scored: list[TokenLogprob], rows: torch.Tensor) -> None:
    for entry, row in zip(scored, rows, strict=True):
        best = row.topk(2)
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert [logprob for _, logprob in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entry.top[0][0] == best.indices[0].item()


async def test_answers_and_log_probabilities_are_the_models_own(models, engine):
    deltas = await answer(engine, "greedy", top_logprobs=2)
    assert len(tokens(deltas)) == 12
    assert deltas[-1].finish_reason == "length"
    with torch.no_grad():
        rows = models["vaetki"](torch.tensor([PROMPT + tokens(deltas)])).logits[0].float().log_softmax(-1)
    assert tokens(deltas) == tuple(rows[len(PROMPT) - 1 : -1].argmax(-1).tolist())
    assert_scores([entry for delta in deltas for entry in delta.logprobs or ()], rows[len(PROMPT) - 1 : -1])
    assert_scores(await engine.score(PROMPT, 2), rows[: len(PROMPT) - 1])


async def test_a_second_time_the_prompt_is_cached(engine):
    await answer(engine, "warm")
    again = await answer(engine, "again")
    assert again[-1].prompt_tokens == len(PROMPT)
    assert again[-1].cached_tokens >= 128


async def test_stop_tokens_end_an_answer_and_come_with_it(engine):
    first = tokens(await answer(engine, "first"))
    stopped = await answer(engine, "stopped", stop_token_ids=(first[1],))
    assert tokens(stopped) == first[: first.index(first[1]) + 1]
    assert stopped[-1].finish_reason == "stop"


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

    async def text(grammar: Grammar, seed: int) -> str:
        asked = {"max_tokens": 200, "temperature": 1.0, "seed": seed, "stop_token_ids": stop_token_ids}
        deltas = await answer(engine, f"{grammar.kind}{seed}", grammar=grammar, **asked)
        assert deltas[-1].finish_reason == "stop"
        ended = tokens(deltas)[-1:] == (3,)
        assert ended == (3 in stop_token_ids)
        return tokenizer.backend.decode(list(tokens(deltas)[:-1] if ended else tokens(deltas)))

    for seed in range(2):
        jsonschema.validate(json.loads(await text(Grammar("json_schema", json.dumps(SCHEMA)), seed)), SCHEMA)
        assert re.fullmatch("[가-힣]{2,4}시", await text(Grammar("regex", "[가-힣]{2,4}시"), seed))


async def test_a_grammar_that_cannot_be_enforced_is_refused(engine):
    with pytest.raises(RequestRefusedError):
        await answer(engine, "refused", grammar=Grammar("regex", "(a"))
    assert len(tokens(await answer(engine, "afterwards"))) == 12


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
