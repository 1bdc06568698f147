"""Any application, served on a socket of the loopback."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator

from fastapi import FastAPI

from trillion_serve.gateway.server import Server, listen, url_of


@contextlib.contextmanager
def serve_app(app: FastAPI, prepare: Callable[[], Awaitable[object]] | None = None) -> Iterator[str]:
    """Serve in a thread until the block ends; gives the base URL, without a path.

    Args:
        app: what to serve.
        prepare: awaited in the server's event loop before it starts.
    """
    sock = listen("127.0.0.1", 0)
    up = threading.Event()
    server = Server(app, shutdown_timeout=5, on_ready=up.set)

    async def run() -> None:
        if prepare is not None:
            await prepare()
        await server.serve(sockets=[sock])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        assert up.wait(10)
        yield url_of(sock).removesuffix("/v1")
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
