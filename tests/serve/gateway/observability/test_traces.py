"""Traces of real requests over a real socket."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from gzip import decompress as gunzip
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support.observed import ask, served, wait_for
from support.running_gateway import CONTENT, MODEL, REASONING
from support.served_app import serve_app
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.engines.protocol import GenerateRequest
from trillion_serve.errors import ServeError
from trillion_serve.gateway import errors
from trillion_serve.gateway.api import chat_completions
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.observability import ObservabilityConfig, install
from trillion_serve.gateway.observability.tracing import Tracing
from trillion_serve.gateway.security.bodies import BodyGuard
from trillion_serve.gateway.security.front import Front
from trillion_serve.request_context import trace_headers


def traced_app(model: ServedModel, tracing: Tracing) -> FastAPI:
    """A gateway with chat alone, traced to wherever the test likes."""
    models = Models([model])
    app = FastAPI()
    errors.install(app)
    app.include_router(chat_completions.router(models))
    app.add_middleware(BodyGuard, front=Front())
    install(app, models, tracing=tracing)
    return app


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
