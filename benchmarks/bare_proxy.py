"""The least that a Python gateway can do: Starlette passes the bytes of a request and of its answer through.

With httpx, which most such gateways use, or with aiohttp, which costs far less.

    python benchmarks/bare_proxy.py --port 9002 --upstream http://127.0.0.1:9001 --client httpx
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Annotated

import aiohttp
import httpx
import typer
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


class Client(StrEnum):
    """What asks the upstream."""

    AIOHTTP = "aiohttp"
    HTTPX = "httpx"


def aiohttp_proxy(upstream: str) -> Starlette:
    """The application in front of ``upstream``, by aiohttp."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
            app.state.session = session
            yield

    async def forward(request: Request) -> Response:
        body = await request.body()
        answer = await request.app.state.session.request(request.method, upstream + request.url.path, data=body)

        async def chunks() -> AsyncIterator[bytes]:
            async with answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        return StreamingResponse(chunks(), answer.status, media_type=answer.headers.get("content-type"))

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=lifespan)


def httpx_proxy(upstream: str) -> Starlette:
    """The application in front of ``upstream``, by httpx."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:
            app.state.client = client
            yield

    async def forward(request: Request) -> Response:
        client: httpx.AsyncClient = request.app.state.client
        outgoing = client.build_request(request.method, upstream + request.url.path, content=await request.body())
        answer = await client.send(outgoing, stream=True)

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:
                await answer.aclose()

        return StreamingResponse(chunks(), answer.status_code, media_type=answer.headers.get("content-type"))

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=lifespan)


def main(
    port: Annotated[int, typer.Option(help="Port to listen on.")],
    upstream: Annotated[str, typer.Option(help="Base URL of the server behind it.")],
    client: Annotated[Client, typer.Option(help="What asks the upstream.")] = Client.AIOHTTP,
) -> None:
    """Serve on the loopback until stopped."""
    proxy = aiohttp_proxy(upstream) if client is Client.AIOHTTP else httpx_proxy(upstream)
    uvicorn.run(proxy, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    typer.run(main)
