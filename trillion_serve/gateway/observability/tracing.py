"""OpenTelemetry traces: one server span a request, with the attributes of the GenAI conventions.

The SDK is an extra, ``trillion-serve[otel]``, and is imported only when traces are asked for. The standard
``OTEL_...`` environment variables say where spans go, which are kept, and what the service is called.
"""

import asyncio
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from trillion_serve.errors import ServeError
from trillion_serve.gateway.observability.record import RequestRecord
from trillion_serve.request_context import request_id, trace_headers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}


class Tracing:
    """Makes spans.

    Args:
        provider: of the application's own: nothing global is set.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer("trillion_serve.gateway")
        self._propagate = propagate
        self._kind = trace.SpanKind.SERVER
        self._error = trace.StatusCode.ERROR

    @classmethod
    def from_environment(cls) -> "Tracing":
        """Set up as the ``OTEL_...`` variables say.

        Raises:
            ServeError: the packages are missing, or a variable has a value that is not supported.
        """
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            exporter = _exporter()
        except ImportError as error:
            raise ServeError(
                f"tracing needs OpenTelemetry ({error}); install it with: pip install 'trillion-serve[otel]'"
            ) from error
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "trillion-serve"}))
        if exporter is not None:
            provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    @contextmanager
    def span(self, scope: Scope, record: RequestRecord) -> Generator[None, None, None]:
        """A span for a request, a child of the client's if it named one. At its end it tells what is recorded."""
        began = time.time_ns()
        parent = self._propagate.extract(dict(Headers(scope=scope)))
        name = f"{record.method} {record.path}"
        with self._tracer.start_as_current_span(name, parent, self._kind, start_time=began) as span:
            headers: dict[str, str] = {}
            self._propagate.inject(headers)
            trace_headers.set(headers)
            try:
                yield
            finally:
                route = getattr(scope.get("route"), "path", None)
                span.update_name(f"{record.method} {route}" if route else record.method)
                self._describe(span, record, route, began)

    async def close(self) -> None:
        """Send what has not been sent yet."""
        await asyncio.to_thread(self._provider.shutdown)

    def _describe(self, span: "Span", record: RequestRecord, route: str | None, began: int) -> None:
        attributes = {**_http_attributes(record, route), **_answer_attributes(record, route)}
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if record.first_token is not None:
            span.add_event("gen_ai.first_token", timestamp=began + int(record.first_token * 1e9))
        if record.status >= 500 or "error" in record.finish_reasons:
            span.set_status(self._error)


def _http_attributes(record: RequestRecord, route: str | None) -> dict[str, Any]:
    return {
        "http.request.method": record.method,
        "http.route": route,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "error.type": record.error_code,
        "trillion.request_id": request_id.get(),
    }


def _answer_attributes(record: RequestRecord, route: str | None) -> dict[str, Any]:
    if not record.requests:
        return {}
    sampling = record.requests[0].sampling
    return {
        "gen_ai.operation.name": _OPERATIONS.get(route or ""),
        "gen_ai.provider.name": "trillion_serve",
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.request.choice.count": len(record.requests) if len(record.requests) > 1 else None,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.reasoning.output_tokens": record.reasoning_tokens,
        "gen_ai.response.finish_reasons": record.finish_reasons,
        "gen_ai.response.time_to_first_chunk": record.first_token,
        "trillion.interventions": record.interventions,
        "trillion.queue_seconds": record.queued,
    }


def _exporter() -> "SpanExporter | None":
    """The exporter that ``OTEL_TRACES_EXPORTER`` and ``OTEL_EXPORTER_OTLP_PROTOCOL`` name."""
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "none":
        return None
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise ServeError(f"OTEL_TRACES_EXPORTER is {name!r}; set it to otlp, console or none")
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((value for variable in variables if (value := os.environ.get(variable))), "http/protobuf")
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc()
    raise ServeError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; set it to http/protobuf or grpc")
