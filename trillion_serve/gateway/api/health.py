"""``/health`` and ``/ready``."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from trillion_serve.errors import EngineUnavailableError
from trillion_serve.gateway.models import Models


def router(models: Models) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    # A probe may ask with HEAD; the document leaves it out, as it does for every GET.
    @routes.head("/health", include_in_schema=False)
    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Whether an engine lives: 200 or 503."""
        await _check(models)
        return {"status": "ok"}

    @routes.head("/ready", include_in_schema=False)
    @routes.get("/ready")
    async def ready(request: Request) -> JSONResponse:
        """Whether requests should be sent here: 200 or 503."""
        if request.app.state.draining:
            return JSONResponse({"status": "draining"}, 503)
        await _check(models)
        return JSONResponse({"status": "ready"})

    return routes


async def _check(models: Models) -> None:
    """Return while a model can answer: one whose engines are down is no reason to take the others away."""
    checks = await asyncio.gather(*(model.engine.health() for model in models), return_exceptions=True)
    failures = [check for check in checks if check is not None]
    if len(failures) == len(checks):
        raise failures[0] if failures else EngineUnavailableError("no model is served here")
