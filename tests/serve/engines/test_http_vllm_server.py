"""The HTTP adapter against the real ``vllm serve``, with a tiny VAETKI of random weights and our plugin."""

import asyncio
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Awaitable
from contextlib import aclosing

import jsonschema
import pytest
from openai import OpenAI

from support import adapter_answers
from support.adapter_answers import (
    CITY,
    assert_a_prompt_is_cached_the_second_time,
    assert_answers_and_scores_are_the_models,
    assert_stop_tokens_end_an_answer,
    text_within,
    tokens,
)
from support.tiny_engine import TinyEngine
from support.upstream_servers import until
from trillion_serve.engines.http import HttpOptions
from trillion_serve.engines.http_vllm import VllmHttpEngine
from trillion_serve.engines.protocol import (
    EngineStats,
    GenerateRequest,
    Grammar,
    SamplingParams,
    TokenDelta,
)
from trillion_serve.errors import EngineUnavailableError, RequestRefusedError
from trillion_serve.routing import HealthConfig, Pool, PoolConfig, RetryConfig

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

PROMPT = tuple(range(5, 200))


@pytest.fixture
def server(vllm_server: TinyEngine) -> TinyEngine:
    """The server, and the model that it runs."""
    return vllm_server


@pytest.fixture
async def engine(server: TinyEngine):
    """The adapter, connected."""
    connected = await VllmHttpEngine.connect(HttpOptions(url=server.url, model="model"))
    yield connected
    await connected.close()


async def answer(engine, request_id: str, prompt=PROMPT, **sampling) -> list[TokenDelta]:
    return await adapter_answers.answer(engine, request_id, prompt, **sampling)


async def test_answers_and_log_probabilities_are_the_models_own(server, engine):
    await assert_answers_and_scores_are_the_models(engine, server.model, PROMPT)


async def test_a_second_time_the_prompt_is_cached(engine):
    await assert_a_prompt_is_cached_the_second_time(engine, PROMPT)


async def test_stop_tokens_end_an_answer_and_come_with_it(engine):
    await assert_stop_tokens_end_an_answer(engine, PROMPT)


async def test_a_seed_repeats_an_answer(engine):
    one, same, other = [tokens(await answer(engine, f"seed{n}", temperature=1.5, seed=s)) for n, s in enumerate("334")]
    assert one == same != other


async def test_what_vllm_refuses_is_refused(engine):
    with pytest.raises(RequestRefusedError, match="maximum context length"):
        await answer(engine, "long", tuple(range(600)))
    with pytest.raises(RequestRefusedError, match="out of vocabulary"):
        await answer(engine, "unknown", (5, 99_999))
    with pytest.raises(RequestRefusedError, match="logprobs"):
        await answer(engine, "many", top_logprobs=200)


@pytest.mark.parametrize("stop_token_ids", [(3,), (), (7,)])
async def test_an_answer_keeps_to_its_grammar_and_ends_with_it(engine, tokenizer, stop_token_ids):
    def text(grammar: Grammar, seed: int) -> Awaitable[str]:
        return text_within(engine, grammar, tokenizer.backend, PROMPT, stop_token_ids, seed)

    for seed in range(3):
        jsonschema.validate(json.loads(await text(Grammar("json_schema", json.dumps(CITY)), seed)), CITY)
        assert re.fullmatch("[가-힣]{2,4}시", await text(Grammar("regex", "[가-힣]{2,4}시"), seed))
        ebnf = Grammar("ebnf", 'root ::= "네" | "아니요"')
        assert await text(ebnf, seed) in ("네", "아니요")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("json_schema", '{"type": "strin"}'), "Invalid type: strin"),
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("ebnf", "rule ::= "), "No 'root' rule"),
    ],
)
async def test_a_grammar_that_vllm_cannot_enforce_is_refused(engine, grammar, reason):
    with pytest.raises(RequestRefusedError, match=reason):
        await answer(engine, "refused", grammar=grammar)
    assert len(tokens(await answer(engine, "afterwards"))) == 12


async def test_stats_are_what_vllm_tells(engine):
    assert await engine.stats() == EngineStats(kv_cache_usage=0.0, running=0, waiting=0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(engine, f"busy{n}", max_tokens=300, temperature=1.0)) for n in range(20)]
        busy = await engine.stats()
        for pause in itertools.repeat(0.02):
            if busy.running == 8:
                break
            await asyncio.sleep(pause)
            busy = await engine.stats()
        assert 0 < busy.waiting <= 12
        assert 0 < busy.kv_cache_usage < 1
        for task in tasks:
            task.cancel()


async def figure(engine, name: str) -> float:
    """A figure of vLLM's metrics."""
    (line,) = [line for line in (await engine._metrics()).splitlines() if line.startswith(f"vllm:{name}{{")]
    return float(line.rsplit(" ", 1)[1])


async def test_leaving_stops_the_request_in_vllm(engine):
    before = await figure(engine, "generation_tokens_total")
    # Alternatives to each token make it slower, so that there is time to leave.
    params = SamplingParams(max_tokens=500, temperature=1.0, top_logprobs=20)
    async with aclosing(engine.generate(GenerateRequest("left", PROMPT[:8], params))) as deltas:
        await anext(deltas)
    generated = []
    for _ in range(4):
        await asyncio.sleep(0.5)
        generated.append(await figure(engine, "generation_tokens_total") - before)
    assert 1 <= generated[-1] < 100
    assert generated[-1] == generated[-2], "it goes on"


def test_the_command_serves_a_chat_in_front_of_it(server, tokenizer_dir):
    command = [sys.executable, "-m", "trillion_serve.cli.main", "serve", str(tokenizer_dir), "--engine", "http"]
    arguments = ["--url", f"vllm={server.url}", "--served-model-name", "chat", "--port", "0"]
    gateway = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(gateway.stdout.readline, "")
        assert "context 512 tokens" in next(lines)
        url = next(line.split(" at ")[1].strip() for line in lines if line.startswith("Serving chat"))
        client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        asked = {"model": "chat", "messages": [{"role": "user", "content": "둘은?"}], "max_tokens": 16}
        answer = client.chat.completions.create(**asked, temperature=0)
        chunks = list(client.chat.completions.create(**asked, temperature=0, stream=True))
        gateway.terminate()
        assert gateway.wait(20) == 0
    finally:
        gateway.kill()
        gateway.wait()
    message = answer.choices[0].message
    assert message.content
    assert 1 <= answer.usage.completion_tokens <= 16
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == message.content


async def test_a_vllm_that_is_killed_is_unavailable(server):
    pool = Pool(PoolConfig(retry=RetryConfig(attempts=2), health=HealthConfig(interval=0.1)))
    pool.add("only", lambda: VllmHttpEngine.connect(HttpOptions(url=server.url)))
    await pool.ready(10.0)
    assert pool.info.context_length == 512
    deltas = pool.generate(GenerateRequest("killed", PROMPT, SamplingParams(max_tokens=300, temperature=1.0)))
    await anext(deltas)
    server.kill()
    with pytest.raises(EngineUnavailableError):
        async for _ in deltas:
            pass
    await until(lambda: pool.snapshot().replicas[0].state == "unhealthy")
    with pytest.raises(EngineUnavailableError, match="only is unhealthy"):
        await answer(pool, "after")
    await pool.close()
