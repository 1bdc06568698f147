"""The OpenAI-compatible HTTP application over one engine."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import Engine
from trillion_serve.gateway import errors
from trillion_serve.gateway.completions import ChatCompletions
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.responses import ChatCompletion, ModelCard, ModelList
from trillion_serve.gateway.schema import ChatCompletionRequest
from trillion_serve.gateway.settings import GatewaySettings
from trillion_serve.gateway.streaming import ClientGone, EventStream, while_connected

_CLIENT_CLOSED_REQUEST = 499


def create_app(engine: Engine, tokenizer: ChatTokenizer, settings: GatewaySettings) -> FastAPI:
    """The application. It closes the engine when it shuts down.

    ``app.state.draining`` may be set to true to make ``/ready`` say that no more requests should come.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await engine.close()

    app = FastAPI(title="trillion-serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.draining = False
    errors.install(app)
    completions = ChatCompletions(engine, tokenizer, settings)
    card = ModelCard(id=settings.model_name, created=int(time.time()), max_model_len=engine.info.context_length)

    def check_model(name: str) -> None:
        if name != settings.model_name:
            raise ApiError(
                f"there is no model {name!r} here, only {settings.model_name!r}",
                status=404,
                code="model_not_found",
                param="model",
            )

    @app.get("/v1/models")
    async def models() -> ModelList:
        """The models that are served."""
        return ModelList(data=[card])

    @app.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> ModelCard:
        """One model."""
        check_model(model_id)
        return card

    @app.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation, as a stream of events if ``stream`` is true."""
        check_model(body.model)
        job = await completions.prepare(body)
        if body.stream:
            return EventStream(completions.stream(job))
        try:
            answer = await while_connected(request.receive, completions.complete(job))
        except ClientGone:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the engine lives: 200 or 503."""
        await engine.health()
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether requests should be sent here: 200 or 503."""
        await engine.health()
        if app.state.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ready"})

    return app
