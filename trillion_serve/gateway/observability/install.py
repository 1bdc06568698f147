"""Puts all of it into an application."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import FastAPI
from pydantic import Field

from trillion_serve.gateway.api import metrics as metrics_api
from trillion_serve.gateway.models import Models
from trillion_serve.gateway.observability.bodies import BodyLog
from trillion_serve.gateway.observability.engine_metrics import EngineMetrics
from trillion_serve.gateway.observability.metrics import Metrics
from trillion_serve.gateway.observability.middleware import RequestWatch
from trillion_serve.gateway.observability.request_id import RequestIds
from trillion_serve.gateway.observability.tracing import Tracing


@dataclass(frozen=True)
class ObservabilityConfig:
    """What is shown, and to whom.

    Attributes:
        log_bodies: log the bodies of requests and responses.
        tracing: send traces as the ``OTEL_...`` environment variables say.
        scrape_timeout: seconds that engines have to tell their figures when metrics are read.
    """

    log_bodies: bool = False
    tracing: bool = False
    scrape_timeout: Annotated[float, Field(gt=0)] = 1.0


def install(
    app: FastAPI, models: Models, config: ObservabilityConfig | None = None, tracing: Tracing | None = None
) -> None:
    """Add ``/metrics`` and the middleware, outside of all that was added before.

    Args:
        app: the application.
        models: what it serves.
        config: what is shown.
        tracing: to be used instead of what ``config`` says.

    Raises:
        ServeError: tracing is asked for and cannot be had.
    """
    config = config or ObservabilityConfig()
    if tracing is None and config.tracing:
        tracing = Tracing.from_environment()
    metrics = Metrics()
    engines = EngineMetrics(models, config.scrape_timeout)
    metrics.registry.register(engines)
    app.include_router(metrics_api.router(models, metrics, engines))
    if config.log_bodies:
        app.add_middleware(BodyLog)
    app.add_middleware(RequestWatch, metrics=metrics, tracing=tracing)
    app.add_middleware(RequestIds)
