"""Metrics of real requests over a real socket."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from support.metrics import Scrape
from support.observed import BODY, SLOW, ask, leave, root, scrape, served, wait_for
from support.running_gateway import CONTENT, MODEL, Gateway
from support.served_app import serve_app
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine, Loop
from trillion_serve.engines.protocol import EngineStats, GenerateRequest
from trillion_serve.errors import OverloadedError
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.observability import ObservabilityConfig, install
from trillion_serve.routing import BreakerConfig, Pool, PoolConfig


def thinker(tokenizer: ChatTokenizer, thoughts: Iterable[int]) -> FakeEngine:
    """An engine whose model thinks without an end, but answers once its thoughts are closed for it."""

    def reply(asked: GenerateRequest) -> Iterable[int]:
        tail = tokenizer.backend.decode(list(asked.prompt_token_ids[-6:]), skip_special_tokens=False)
        closed = tail.rstrip().endswith("</think>")
        return [*tokenizer.encode(CONTENT), *tokenizer.end_ids] if closed else thoughts

    return FakeEngine(reply)


@pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 7}, {"chunk": 1000}], indirect=True)
@pytest.mark.parametrize("stream", [True, False])
def test_metrics_count_what_usage_counts(gateway: Gateway, stream: bool) -> None:
    usages = []
    for count in (1, 3):
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = ask(root(gateway), n=count, **options)
        usages.append(json.loads(answer.text.split("\n\n")[-3][6:] if stream else answer.text)["usage"])
    found = scrape(gateway)
    model = {"model_name": MODEL}

    def used(name: str) -> int:
        return sum(usage[name] for usage in usages)

    reasoning = sum(usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages)
    assert found("vllm:prompt_tokens_total", **model) == used("prompt_tokens")
    assert found("vllm:generation_tokens_total", **model) == used("completion_tokens")
    assert found("trillion:reasoning_tokens_total", **model) == reasoning > 0
    assert found("trillion:request_reasoning_tokens_count", **model) == 4
    assert found("trillion:request_reasoning_tokens_sum", **model) == reasoning
    assert found("vllm:time_to_first_token_seconds_count", **model) == 4
    assert found("vllm:e2e_request_latency_seconds_count", **model) == 4
    assert found("vllm:request_success_total", finished_reason="stop", **model) == 4
    assert found("vllm:request_success_total", finished_reason="abort", **model) == 0
    assert found("trillion:requests_total", endpoint="/v1/chat/completions", status="200") == 2


def test_the_time_between_tokens_is_counted_by_token(gateway: Gateway) -> None:
    tokens = ask(root(gateway)).json()["usage"]["completion_tokens"]
    found = scrape(gateway)
    # The fake engine gives one token at a time, and the first is not between two.
    assert found("vllm:inter_token_latency_seconds_count", model_name=MODEL) == tokens - 1
    assert found("vllm:inter_token_latency_seconds_bucket", model_name=MODEL, le="+Inf") == tokens - 1
    spent = found("vllm:inter_token_latency_seconds_sum", model_name=MODEL)
    whole = found("vllm:e2e_request_latency_seconds_sum", model_name=MODEL)
    assert spent is not None and whole is not None
    assert 0 < spent < whole


def test_plain_completions_are_counted_too(gateway: Gateway) -> None:
    body = {"model": MODEL, "prompt": ["하나", "하나"], "max_tokens": 3}
    usage = httpx.post(f"{gateway.url}/completions", json=body, timeout=30).json()["usage"]
    found = scrape(gateway)
    assert found("vllm:prompt_tokens_total", model_name=MODEL) == usage["prompt_tokens"]
    assert found("vllm:generation_tokens_total", model_name=MODEL) == usage["completion_tokens"] == 6
    assert found("vllm:request_success_total", model_name=MODEL, finished_reason="length") == 2


def test_every_intervention_is_counted(tokenizer: ChatTokenizer) -> None:
    counting = tokenizer.encode(" ".join(map(str, range(1000))))
    in_circles = Loop(tokenizer.encode("다시 생각해 보자. "))
    cases = [
        (thinker(tokenizer, counting), {"thinking_token_budget": 20}, "thinking_budget"),
        (thinker(tokenizer, in_circles), {}, "reasoning_loop"),
        (thinker(tokenizer, [*tokenizer.encode("음"), *tokenizer.end_ids]), {}, "empty_answer"),
        (FakeEngine(lambda _: Loop(in_circles.cycle, tokenizer.encode("생각\n</think>\n\n"))), {}, "content_loop"),
    ]
    for engine, options, intervention in cases:
        with serve_app(served(engine, tokenizer)) as url:
            usage = ask(url, **options).json()["usage"]
            found = Scrape(url)
        counts = {
            dict(labels)["intervention"]: value
            for (name, labels), value in found.samples.items()
            if name == "trillion:interventions_total"
        }
        assert {kind for kind, count in counts.items() if count} == {intervention}
        assert counts[intervention] == 1
        assert found("vllm:generation_tokens_total", model_name=MODEL) == usage["completion_tokens"]
        assert (
            found("trillion:reasoning_tokens_total", model_name=MODEL)
            == usage["completion_tokens_details"]["reasoning_tokens"]
        )


def test_requests_that_are_turned_away_are_counted_by_reason(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(root(gateway), temperature=3)
    ask(root(gateway), model="other")
    gateway.get("/nowhere")

    async def full(asked: GenerateRequest) -> AsyncGenerator[Any, None]:
        raise OverloadedError("all places are taken", retry_after=2)
        yield

    monkeypatch.setattr(gateway.engine, "generate", full)
    ask(root(gateway), stream=True)
    found = scrape(gateway)
    assert found("trillion:rejected_total", reason="invalid_value") == 1
    assert found("trillion:rejected_total", reason="model_not_found") == 1
    assert found("trillion:rejected_total", reason="overloaded") == 1
    assert found("trillion:requests_total", endpoint="none", status="404") == 1
    assert found("trillion:requests_total", endpoint="/v1/chat/completions", status="429") == 1
    assert found("vllm:time_to_first_token_seconds_count", model_name=MODEL) == 0


@SLOW
def test_a_request_whose_client_left_is_an_abort(gateway: Gateway) -> None:
    leave(gateway)
    wait_for(lambda: scrape(gateway)("trillion:requests_total", endpoint="/v1/chat/completions", status="499") == 1)
    found = scrape(gateway)
    assert found("vllm:request_success_total", model_name=MODEL, finished_reason="abort") == 1
    assert found("vllm:time_to_first_token_seconds_count", model_name=MODEL) == 1
    assert found("vllm:e2e_request_latency_seconds_count", model_name=MODEL) == 0
    assert found("trillion:rejected_total", reason="http_499") is None


@pytest.mark.parametrize("gateway", [{"dies_after": 5}], indirect=True)
def test_an_answer_that_breaks_off_is_an_error(gateway: Gateway) -> None:
    ask(root(gateway), stream=True)
    found = scrape(gateway)
    assert found("vllm:request_success_total", model_name=MODEL, finished_reason="error") == 1
    assert found("trillion:engine_up", model_name=MODEL) == 0
    assert found("vllm:num_requests_running", model_name=MODEL) is None


@SLOW
def test_engines_tell_how_full_they_are(gateway: Gateway) -> None:
    with httpx.stream("POST", f"{gateway.url}/chat/completions", json={**BODY, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        found = scrape(gateway)
    assert found("trillion:engine_up", model_name=MODEL) == 1
    assert found("vllm:num_requests_running", model_name=MODEL) == 1
    assert found("vllm:num_requests_waiting", model_name=MODEL) == 0
    usage = found("vllm:kv_cache_usage_perc", model_name=MODEL)
    assert usage is not None and 0 < usage < 1


def test_an_engine_that_hangs_does_not_hold_up_the_others(tokenizer: ChatTokenizer) -> None:
    class Hung(FakeEngine):
        async def stats(self) -> EngineStats:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                # Not even this stops it at once.
                await asyncio.sleep(0.5)
                raise
            return await super().stats()

    models = Models(
        [ServedModel("hung", Hung(lambda _: []), tokenizer), ServedModel("fine", FakeEngine(lambda _: []), tokenizer)]
    )
    app = FastAPI()
    install(app, models, ObservabilityConfig(scrape_timeout=0.1))
    with serve_app(app) as url:
        found = Scrape(url)
    assert found("trillion:engine_up", model_name="hung") == 0
    assert found("trillion:engine_up", model_name="fine") == 1


def test_a_pool_tells_of_its_replicas(tokenizer: ChatTokenizer) -> None:
    text = [*tokenizer.encode("응\n</think>\n\n둘"), *tokenizer.end_ids]
    engines = {"sound": FakeEngine(lambda _: text), "broken": FakeEngine(lambda _: text, dies_after=0)}
    pool = Pool(PoolConfig(policy="least_load", breaker=BreakerConfig(failures=1, open_seconds=60)))

    async def connected(name: str) -> FakeEngine:
        return engines[name]

    async def prepare() -> None:
        for name in engines:
            pool.add(name, partial(connected, name))
        await pool.ready(5)

    with serve_app(create_app(Models([ServedModel(MODEL, pool, tokenizer)])), prepare) as url:
        answers = [ask(url) for _ in range(2)]
        found = Scrape(url)
    assert [answer.status_code for answer in answers] == [200, 200]
    sound, broken = ({"model_name": MODEL, "replica": name} for name in engines)
    assert found("trillion:replica_up", **sound) == 1
    assert found("trillion:replica_up", **broken) == 0
    assert [found("trillion:circuit_state", state=state, **sound) for state in ("closed", "half_open", "open")] == [
        1,
        0,
        0,
    ]
    assert [found("trillion:circuit_state", state=state, **broken) for state in ("closed", "half_open", "open")] == [
        0,
        0,
        1,
    ]
    assert found("trillion:retries_total", model_name=MODEL) == 1
    assert found("trillion:engine_up", model_name=MODEL) == 1


def test_openmetrics_is_spoken_to_those_who_ask(gateway: Gateway) -> None:
    plain = gateway.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    asked = httpx.get(root(gateway) + "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = list(text_string_to_metric_families(asked.text))
    assert {"vllm:inter_token_latency_seconds", "trillion:requests"} <= {family.name for family in families}


def test_two_gateways_in_one_process_count_apart(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    ask(root(gateway))
    with serve_app(served(FakeEngine(lambda _: []), tokenizer)) as other:
        assert Scrape(other)("vllm:generation_tokens_total", model_name=MODEL) == 0
    found = scrape(gateway)("vllm:generation_tokens_total", model_name=MODEL)
    assert found is not None and found > 0
