"""The OpenAI-compatible HTTP application over one model or several."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from trillion_serve.gateway import errors
from trillion_serve.gateway.api import admin, chat_completions, completions, health, page, responses, tokenize
from trillion_serve.gateway.api import models as models_api
from trillion_serve.gateway.deployment import Deployment
from trillion_serve.gateway.limits.throttle import Throttle
from trillion_serve.gateway.models import Models
from trillion_serve.gateway.observability import ObservabilityConfig
from trillion_serve.gateway.observability import install as install_observability
from trillion_serve.gateway.security.authentication import Authentication
from trillion_serve.gateway.security.bodies import BodyGuard
from trillion_serve.gateway.security.front import Front, FrontSettings


def create_app(
    models: Models, front: FrontSettings | None = None, observed: ObservabilityConfig | None = None
) -> FastAPI:
    """An application over models that do not change. It closes their engines when it shuts down.

    ``app.state.draining`` may be set to true to make ``/ready`` say that no more requests should come.

    Args:
        models: what is served.
        front: who may come in, and with how much; None lets everyone in.
        observed: what is shown of it.
    """
    return _create(models, Front(front), observed, models.close)


def create_deployment_app(deployment: Deployment) -> FastAPI:
    """An application over a deployment, which the admin API may change."""
    app = _create(deployment.models, deployment.front, deployment.config.observability, deployment.close)
    app.include_router(admin.router(deployment))
    return app


def _create(
    models: Models, front: Front, observed: ObservabilityConfig | None, close: Callable[[], Awaitable[None]]
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await close()

    app = FastAPI(title="trillion-serve", lifespan=lifespan, docs_url=None, redoc_url=None, responses=errors.RESPONSES)
    app.state.draining = False
    errors.install(app)
    for api in (models_api, chat_completions, completions, responses, tokenize, health):
        app.include_router(api.router(models))
    app.include_router(page.router())
    # The last one stands at the front.
    app.add_middleware(BodyGuard, front=front)
    app.add_middleware(Throttle, front=front)
    app.add_middleware(Authentication, front=front)
    install_observability(app, models, observed)
    return app
