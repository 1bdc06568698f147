"""The least that a Python gateway can do: Starlette passes the bytes of a request and of its answer through.

python benchmarks/bare_proxy.py --port 9002 --upstream http://127.0.0.1:9001
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import aiohttp
import typer
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


def bare_proxy(upstream: str) -> Starlette:
    """The application in front of ``upstream``."""

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


def main(
    port: Annotated[int, typer.Option(help="Port to listen on.")],
    upstream: Annotated[str, typer.Option(help="Base URL of the server behind it.")],
) -> None:
    """Serve on the loopback until stopped."""
    uvicorn.run(bare_proxy(upstream), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    typer.run(main)
