"""Request ids, logs, metrics and traces of real requests over a real socket."""

import asyncio
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from functools import partial
from gzip import decompress as gunzip
from io import StringIO
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from starlette.datastructures import Headers

from support.metrics import Scrape
from support.running_gateway import CONTENT, MODEL, REASONING, Gateway
from support.served_app import serve_app
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine, Loop
from trillion_serve.engines.protocol import EngineStats, GenerateRequest
from trillion_serve.errors import OverloadedError, ServeError
from trillion_serve.gateway import errors
from trillion_serve.gateway.api import chat_completions
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.observability import LogFormat, ObservabilityConfig, configure_logging, install
from trillion_serve.gateway.observability.request_id import request_id_of
from trillion_serve.gateway.observability.tracing import Tracing
from trillion_serve.gateway.security.front import FrontSettings
from trillion_serve.gateway.security.keys import ApiKey, Keyring, digest_of, new_secret
from trillion_serve.request_context import trace_headers
from trillion_serve.routing import BreakerConfig, Pool, PoolConfig

QUESTION = [{"role": "user", "content": "둘은?"}]
BODY: dict[str, Any] = {"model": MODEL, "messages": QUESTION}
SLOW = pytest.mark.parametrize("gateway", [{"interval": 0.02}], indirect=True)


def root(gateway: Gateway) -> str:
    return gateway.url.removesuffix("/v1")


def scrape(gateway: Gateway) -> Scrape:
    return Scrape(root(gateway))


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true"
        time.sleep(0.01)


def ask(base_url: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return httpx.post(f"{base_url}/v1/chat/completions", json={**BODY, **body}, headers=headers, timeout=30)


def leave(gateway: Gateway) -> None:
    """Begin to read a stream and go away."""
    with httpx.stream("POST", f"{gateway.url}/chat/completions", json={**BODY, "stream": True}) as response:
        next(response.iter_lines())
    wait_for(lambda: gateway.engine.aborted)


def served(engine: FakeEngine, tokenizer: ChatTokenizer, observed: ObservabilityConfig | None = None) -> FastAPI:
    """A gateway over one engine."""
    return create_app(Models([ServedModel(MODEL, engine, tokenizer)]), observed=observed)


def traced_app(model: ServedModel, tracing: Tracing) -> FastAPI:
    """A gateway with chat alone, traced to wherever the test likes."""
    models = Models([model])
    app = FastAPI()
    errors.install(app)
    app.include_router(chat_completions.router(models))
    install(app, models, tracing=tracing)
    return app


def thinker(tokenizer: ChatTokenizer, thoughts: Iterable[int]) -> FakeEngine:
    """An engine whose model thinks without an end, but answers once its thoughts are closed for it."""

    def reply(asked: GenerateRequest) -> Iterable[int]:
        tail = tokenizer.backend.decode(list(asked.prompt_token_ids[-6:]), skip_special_tokens=False)
        closed = tail.rstrip().endswith("</think>")
        return [*tokenizer.encode(CONTENT), *tokenizer.end_ids] if closed else thoughts

    return FakeEngine(reply)


# Request ids


@pytest.mark.parametrize("given", ["abc", "a-b_c.d:e@f/g=h+0", "x" * 128])
def test_a_sane_id_of_the_clients_comes_back(gateway: Gateway, given: str) -> None:
    assert ask(root(gateway), {"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "{}", "a,b"])
def test_any_other_id_is_replaced(gateway: Gateway, given: str) -> None:
    first, second = (ask(root(gateway), {"x-request-id": given}).headers["x-request-id"] for _ in range(2))
    assert first != second
    assert len(first) == len(second) == 32
    assert given not in (first, second)


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_an_id_is_sane_whatever_is_sent(sent: str) -> None:
    chosen = request_id_of(Headers(raw=[(b"x-request-id", sent.encode("latin-1"))]))
    assert re.fullmatch(r"[!-~]{1,128}", chosen)
    assert not set(chosen) & set("\"'{},;<>\\")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404),
        ("/nowhere", b"{}", 404),
        ("/health", b"", 405),
    ],
)
def test_errors_carry_the_id_too(gateway: Gateway, path: str, body: bytes, status: int) -> None:
    headers = {"x-request-id": "mine", "content-type": "application/json"}
    answer = httpx.post(root(gateway) + path, content=body, headers=headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")


def test_an_error_that_nobody_expected_carries_the_id(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(asked: GenerateRequest) -> list[int]:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(gateway.engine, "_reply", broken)
    for stream in (False, True):
        answer = ask(root(gateway), {"x-request-id": "mine"}, stream=stream)
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text


def test_a_stream_carries_the_id_and_so_does_the_engines_request(gateway: Gateway) -> None:
    answer = ask(root(gateway), {"x-request-id": "mine"}, stream=True, n=2)
    assert answer.headers["x-request-id"] == "mine"
    ids = [request.request_id for request in gateway.requests]
    assert len(set(ids)) == 2
    assert all(".mine" in each for each in ids)


# Logs


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """What is logged to stderr. Afterwards logging is as it was before."""
    written = StringIO()
    monkeypatch.setattr("sys.stderr", written)
    whole, ours = logging.getLogger(), logging.getLogger("trillion_serve")
    before = whole.handlers[:], whole.level, ours.level
    yield written
    whole.handlers[:] = before[0]
    whole.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
def json_lines(stderr: StringIO) -> Callable[[str], list[dict[str, Any]]]:
    """The JSON lines of a logger, of which there will be one or more."""
    configure_logging(LogFormat.JSON, "info")

    def read(logger: str) -> list[dict[str, Any]]:
        # A client has its answer before the server is done with the request.
        wait_for(lambda: logger in stderr.getvalue())
        lines = [json.loads(line) for line in stderr.getvalue().splitlines()]
        return [line for line in lines if line["logger"] == logger]

    return read


@pytest.fixture
def text_log(stderr: StringIO) -> StringIO:
    """What is logged as text, when debugging."""
    configure_logging(LogFormat.TEXT, "debug")
    return stderr


def test_a_request_leaves_one_line(
    json_lines: Callable[[str], list[dict[str, Any]]], gateway: Gateway, tokenizer: ChatTokenizer
) -> None:
    usage = ask(root(gateway), {"x-request-id": "mine"}, n=2, stream=False).json()["usage"]
    (line,) = json_lines("trillion_serve.access")
    line.pop("vllm_process_name", None)  # vLLM, once it is imported, adds it to every record
    times = [line.pop(name) for name in ("time", "duration", "ttft")]
    assert times[0].endswith(("Z", "+00:00"))
    assert 0 < times[2] <= times[1]
    assert line == {
        "level": "INFO",
        "logger": "trillion_serve.access",
        "message": "POST /v1/chat/completions 200",
        "request_id": "mine",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": MODEL,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
        "finish_reasons": ["stop", "stop"],
    }


def test_a_request_that_is_turned_away_leaves_its_error(
    json_lines: Callable[[str], list[dict[str, Any]]], gateway: Gateway
) -> None:
    ask(root(gateway), temperature=3)
    (line,) = json_lines("trillion_serve.access")
    assert (line["status"], line["error"]) == (400, "invalid_value")
    assert "model" not in line
    assert "finish_reasons" not in line


def test_a_line_names_the_key(json_lines: Callable[[str], list[dict[str, Any]]], tokenizer: ChatTokenizer) -> None:
    secret = new_secret()
    front = FrontSettings(keys=Keyring([ApiKey("team-a", digest_of(secret))]))
    engine = FakeEngine(lambda _: [*tokenizer.encode("응\n</think>\n\n둘"), *tokenizer.end_ids])
    with serve_app(create_app(Models([ServedModel(MODEL, engine, tokenizer)]), front)) as url:
        assert ask(url, {"authorization": f"Bearer {secret}"}).status_code == 200
        refused = ask(url, {"authorization": "Bearer wrong", "x-request-id": "mine"})
        found = Scrape(url)
    first, second = json_lines("trillion_serve.access")
    assert (first["status"], first["key"]) == (200, "team-a")
    assert (second["status"], second["error"], "key" in second) == (401, "invalid_api_key", False)
    assert refused.headers["x-request-id"] == second["request_id"] == "mine"
    assert found("trillion:rejected_total", reason="invalid_api_key") == 1
    assert secret not in str(first)


@SLOW
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_left_is_told_of(
    json_lines: Callable[[str], list[dict[str, Any]]], gateway: Gateway, stream: bool
) -> None:
    if stream:
        leave(gateway)
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/chat/completions", json=BODY, timeout=0.15)
    (line,) = json_lines("trillion_serve.access")
    assert (line["status"], line["client_gone"], line["finish_reasons"]) == (499, True, ["abort"])
    assert "error" not in line


def test_no_secret_is_logged_and_no_body_unless_asked(text_log: StringIO, gateway: Gateway) -> None:
    secrets = {"authorization": "Bearer sk-hidden-1", "x-api-key": "sk-hidden-2", "cookie": "session=sk-hidden-3"}
    httpx.post(f"{gateway.url}/chat/completions?api_key=sk-hidden-4", json=BODY, headers=secrets)
    httpx.post(f"{gateway.url}/chat/completions?api_key=sk-hidden-4", json={**BODY, "n": 0}, headers=secrets)
    wait_for(lambda: "POST /v1/chat/completions 400" in text_log.getvalue())
    logged = text_log.getvalue()
    assert "POST /v1/chat/completions 200" in logged
    assert "sk-hidden" not in logged
    assert "둘은" not in logged
    assert CONTENT not in logged


@pytest.mark.parametrize("log_bodies", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_bodies_are_logged_when_asked(
    json_lines: Callable[[str], list[dict[str, Any]]],
    stderr: StringIO,
    tokenizer: ChatTokenizer,
    log_bodies: bool,
    stream: bool,
) -> None:
    engine = FakeEngine(lambda asked: [*tokenizer.encode(f"{REASONING}\n</think>\n\n{CONTENT}"), *tokenizer.end_ids])
    config = ObservabilityConfig(log_bodies=log_bodies)
    with serve_app(served(engine, tokenizer, config)) as url:
        answer = ask(url, {"authorization": "Bearer sk-hidden", "x-request-id": "mine"}, stream=stream)
    assert "sk-hidden" not in stderr.getvalue()
    if not log_bodies:
        assert "trillion_serve.bodies" not in stderr.getvalue()
        return
    (line,) = json_lines("trillion_serve.bodies")
    assert json.loads(line["request_body"]) == {**BODY, "stream": stream}
    assert line["response_body"] == answer.text
    assert line["request_id"] == "mine"


def test_probes_are_logged_only_when_debugging(
    json_lines: Callable[[str], list[dict[str, Any]]], stderr: StringIO, gateway: Gateway
) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        gateway.get(path)
    assert [line["path"] for line in json_lines("trillion_serve.access")] == ["/v1/models"]
    logging.getLogger("trillion_serve").setLevel("DEBUG")
    gateway.get("/health")
    wait_for(lambda: "/health" in stderr.getvalue())


def test_a_traceback_is_one_line_with_the_id(
    json_lines: Callable[[str], list[dict[str, Any]]], gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.engine, "_reply", lambda asked: 1 / 0)
    ask(root(gateway), {"x-request-id": "mine"})
    (line,) = json_lines("trillion_serve.gateway.observability.middleware")
    assert (line["level"], line["request_id"]) == ("ERROR", "mine")
    assert "ZeroDivisionError" in line["exc_info"]


# Metrics


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


# Traces


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """Where finished spans end up."""
    return InMemorySpanExporter()


@pytest.fixture
def traced(tokenizer: ChatTokenizer, spans: InMemorySpanExporter) -> Iterator[tuple[str, list[str]]]:
    """A traced gateway's URL, and the trace headers that its engine would send on."""
    sent_on: list[str] = []

    def reply(asked: GenerateRequest) -> list[int]:
        sent_on.append(trace_headers.get().get("traceparent", ""))
        return [*tokenizer.encode(f"{REASONING}\n</think>\n\n{CONTENT}"), *tokenizer.end_ids]

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    model = ServedModel(MODEL, FakeEngine(reply), tokenizer)
    with serve_app(traced_app(model, Tracing(provider))) as url:
        yield url, sent_on


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    wait_for(spans.get_finished_spans)
    (span,) = spans.get_finished_spans()
    return span


def traceparent(span: ReadableSpan) -> str:
    """The header that makes a request a child of the span."""
    context = span.context
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def test_a_request_is_one_span_with_what_it_took(traced: tuple[str, list[str]], spans: InMemorySpanExporter) -> None:
    url, sent_on = traced
    usage = ask(url, {"x-request-id": "mine"}, temperature=0.5, max_tokens=200).json()["usage"]
    httpx.get(f"{url}/metrics")
    span = only(spans)
    assert (span.name, span.kind.name) == ("POST /v1/chat/completions", "SERVER")
    assert span.attributes is not None
    attributes = dict(span.attributes)
    took = attributes.pop("gen_ai.response.time_to_first_chunk")
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "trillion.request_id": "mine",
        "trillion.interventions": (),
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "trillion_serve",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.request.max_tokens": 200,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.reasoning.output_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
        "gen_ai.response.finish_reasons": ("stop",),
    }
    (event,) = span.events
    assert event.name == "gen_ai.first_token"
    assert span.start_time is not None and span.end_time is not None
    assert span.start_time < event.timestamp < span.end_time
    assert event.timestamp - span.start_time == pytest.approx(float(str(took)) * 1e9, abs=1000)
    assert sent_on == [traceparent(span)]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_traces_is_the_parent(
    traced: tuple[str, list[str]], spans: InMemorySpanExporter, stream: bool
) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    ask(traced[0], {"traceparent": f"00-{trace_id}-{span_id}-01"}, stream=stream)
    span = only(spans)
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == span_id
    assert f"{span.context.trace_id:032x}" == trace_id
    assert traced[1] == [traceparent(span)]


def test_log_lines_name_the_trace(
    json_lines: Callable[[str], list[dict[str, Any]]], traced: tuple[str, list[str]], spans: InMemorySpanExporter
) -> None:
    ask(traced[0])
    (line,) = json_lines("trillion_serve.access")
    assert line["trace_id"] == f"{only(spans).context.trace_id:032x}"


def test_a_failed_request_is_a_failed_span(
    traced: tuple[str, list[str]], spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(traced[0], model="other")
    refused = only(spans)
    assert (refused.status.status_code.name, refused.attributes) == (
        "UNSET",
        {**dict(refused.attributes or {}), "error.type": "model_not_found", "http.response.status_code": 404},
    )


def test_spans_reach_a_collector_before_the_server_is_gone(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = ExportTraceServiceRequest()
    collector = FastAPI()

    @collector.post("/v1/traces")
    async def collect(request: Request) -> Response:
        body = await request.body()
        exported.MergeFromString(gunzip(body) if request.headers.get("content-encoding") == "gzip" else body)
        return Response()

    engine = FakeEngine(lambda _: [*tokenizer.encode("응\n</think>\n\n둘"), *tokenizer.end_ids])
    with serve_app(collector) as collector_url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector_url)
        with serve_app(served(engine, tokenizer, ObservabilityConfig(tracing=True))) as url:
            ask(url)
    (sent,) = exported.resource_spans
    assert "trillion-serve" in [attribute.value.string_value for attribute in sent.resource.attributes]
    assert [span.name for span in sent.scope_spans[0].spans] == ["POST /v1/chat/completions"]


def test_tracing_that_is_set_up_wrongly_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    with pytest.raises(ServeError, match=r"OTEL_TRACES_EXPORTER is 'carrier-pigeon'; set it to otlp, console or none"):
        Tracing.from_environment()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(ServeError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'carrier-pigeon'"):
        Tracing.from_environment()


def test_tracing_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ServeError, match=r"pip install 'trillion-serve\[otel\]'"):
        Tracing.from_environment()


def test_nothing_of_tracing_is_imported_unless_asked() -> None:
    check = "import sys, trillion_serve.gateway.app; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"
