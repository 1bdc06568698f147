"""What goes with a request beyond the gateway: how long it waits for a replica, and whose trace it is part of."""

import logging
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from support.metrics import Scrape
from support.running_gateway import MODEL
from support.served_app import serve_app
from support.upstream_servers import VllmUpstream, serving
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.engines.http import HttpOptions
from trillion_serve.engines.http_vllm import VllmHttpEngine
from trillion_serve.engines.protocol import GenerateRequest, SamplingParams
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.request_context import trace_headers
from trillion_serve.routing import Pool, PoolConfig

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_wait_for_a_replica_is_counted(tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trillion_serve")
    engine = FakeEngine(lambda _: [*tokenizer.encode("응\n</think>\n\n둘"), *tokenizer.end_ids], interval=0.02)
    pool = Pool(PoolConfig(max_concurrency=1))

    async def connect() -> FakeEngine:
        return engine

    async def prepare() -> None:
        pool.add("only", connect)
        await pool.ready(5)

    body = {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}]}
    with serve_app(create_app(Models([ServedModel(MODEL, pool, tokenizer)])), prepare) as url:
        with ThreadPoolExecutor(2) as threads:
            asked = [threads.submit(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=30) for _ in range(2)]
        assert [answer.result().status_code for answer in asked] == [200, 200]
        found = Scrape(url)
    first, second = (vars(record) for record in caplog.records if record.name == "trillion_serve.access")
    waited = first["queued"] + second["queued"]
    assert found("vllm:request_queue_time_seconds_count", model_name=MODEL) == 2
    assert found("vllm:request_queue_time_seconds_sum", model_name=MODEL) == pytest.approx(waited, abs=1e-5)
    assert first["queued"] < 0.02 < second["queued"] < second["duration"]


async def test_a_server_behind_the_gateway_is_told_of_the_trace() -> None:
    upstream = VllmUpstream().app()
    seen: list[bytes | None] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["headers"]).get(b"traceparent"))
        await upstream(scope, receive, send)

    async with serving(noting) as url:
        engine = await VllmHttpEngine.connect(HttpOptions(url))
        seen.clear()
        trace_headers.set({"traceparent": TRACEPARENT})
        request = GenerateRequest("one", (1, 2), SamplingParams(max_tokens=5, stop_token_ids=(15,)))
        assert [delta.token_ids async for delta in engine.generate(request)]
        await engine.close()
    assert seen == [TRACEPARENT.encode()]
