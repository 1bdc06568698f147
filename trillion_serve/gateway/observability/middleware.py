"""Follows each request from its arrival to its end, and then says what became of it."""

import logging
from contextlib import nullcontext

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trillion_serve.gateway.observability.logs import log_access
from trillion_serve.gateway.observability.metrics import Metrics
from trillion_serve.gateway.observability.record import RequestRecord, current_record
from trillion_serve.gateway.observability.tracing import Tracing
from trillion_serve.request_context import on_queued

logger = logging.getLogger(__name__)

QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""What machines ask every few seconds: not traced, and logged only when debugging."""


class RequestWatch:
    """Keeps a ``RequestRecord`` for each request; at its end come a log line, metrics, and a span if traced.

    An error that nothing else handles is answered here, inside of what puts the request's id on responses.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the application's whole life."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
            return

        async def close_before_the_end(message: Message) -> None:
            # The server goes away as soon as it has been told.
            if message["type"] == "lifespan.shutdown.complete" and self._tracing is not None:
                await self._tracing.close()
            await send(message)

        await self._app(scope, receive, close_before_the_end)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(scope["method"], scope["path"], self._metrics)
        current_record.set(record)
        on_queued.set(record.waited)
        quiet = record.path in QUIET_PATHS
        tracing = None if quiet else self._tracing
        with nullcontext() if tracing is None else tracing.span(scope, record):
            try:
                await self._run(record, scope, receive, send)
            finally:
                self._metrics.request(endpoint_of(scope), record.status, record.rejected)
                log_access(record, scope["state"].get("key_name"), logging.DEBUG if quiet else logging.INFO)

    async def _run(self, record: RequestRecord, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_and_note() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not record.complete:
                record.client_gone = True
            return message

        async def note_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.response_status = message["status"]
            elif not message.get("more_body"):
                record.complete = True
                if record.status >= 400 and not record.client_gone:
                    record.told_error(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive_and_note, note_and_send)
        except Exception as error:
            logger.exception("%s %s failed", record.method, record.path)
            handler = scope["app"].exception_handlers.get(Exception)
            if record.response_status is not None or handler is None:
                raise
            response = await handler(Request(scope), error)
            await response(scope, receive_and_note, note_and_send)


def endpoint_of(scope: Scope) -> str:
    """The route that a request took, with its parameters as names; ``none`` if it took none."""
    return getattr(scope.get("route"), "path", "none")
