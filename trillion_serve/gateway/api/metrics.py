"""``/metrics``, for Prometheus."""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from trillion_serve.gateway.models import Models
from trillion_serve.gateway.observability.engine_metrics import EngineMetrics
from trillion_serve.gateway.observability.metrics import Metrics


def router(models: Models, metrics: Metrics, engines: EngineMetrics) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics(request: Request) -> Response:
        """All metrics, as Prometheus text, or as OpenMetrics for those who accept it."""
        await engines.refresh()
        for model in models:
            metrics.model(model.name)
        # Writing some thousand lines would hold up every stream.
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            text = await asyncio.to_thread(_openmetrics, metrics.registry)
            return Response(text, headers={"content-type": openmetrics.CONTENT_TYPE_LATEST})
        text = await asyncio.to_thread(generate_latest, metrics.registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return routes


def _openmetrics(registry: CollectorRegistry) -> bytes:
    # Any other escaping turns the colons in the names of samples, which are legal, into underscores.
    return openmetrics.generate_latest(registry, escaping=openmetrics.ALLOWUTF8)
