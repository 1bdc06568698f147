"""What goes with a request through every layer without being handed on: the gateway sets it, engines read it.

Each request is served in a task of its own, and the tasks that it starts inherit these.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType


def _nobody_asks(seconds: float) -> None:
    """Drop a queue time that nobody wants to know."""


request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id that the client gave the request, or was told; empty outside a request."""

trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default=MappingProxyType({}))
"""Headers (W3C ``traceparent`` and what goes with it) for requests to other servers; empty without tracing."""

on_queued: ContextVar[Callable[[float], None]] = ContextVar("on_queued", default=_nobody_asks)
"""Whom to tell the seconds that a request to an engine waited before one took it."""
