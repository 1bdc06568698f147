"""Serving an application on a socket until it is told to stop."""

import contextlib
import gc
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from trillion_serve.errors import ServeError

_GC_THRESHOLD = 10_000
"""New objects after which Python looks for cycles. Requests make few: its own 700 has every stream wait for many a
look, and far more than this would make one look long."""


class Server(uvicorn.Server):
    """Uvicorn, which on SIGTERM or SIGINT takes no more requests, finishes those under way and returns.

    Uvicorn itself would raise the signal once more after that, and end the process with its status.

    Args:
        app: what to serve.
        shutdown_timeout: seconds that requests under way may take to finish.
        drain_delay: seconds after SIGTERM in which requests are still taken, each on a connection that then closes.
        on_ready: called when the first request can come.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        shutdown_timeout: int,
        on_ready: Callable[[], None],
        drain_delay: float = 0.0,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,  # its loggers write where all others do
                log_level="warning",
                access_log=False,  # the gateway writes its own
                timeout_graceful_shutdown=shutdown_timeout,
                timeout_keep_alive=30,
            )
        )
        self._app = app
        self._on_ready = on_ready
        self._drain_delay = drain_delay
        self._drained_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            # What the imports left behind stays: looking through it again and again holds up every stream.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD)
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop: called ten times a second."""
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain. A second signal ends the delay, and a SIGINT after that everything."""
        self._app.state.draining = True
        if sig == signal.SIGTERM and self._drain_delay and self._drained_at is None:
            self._drained_at = time.monotonic() + self._drain_delay
            for headers in (self.config.encoded_headers, self.server_state.default_headers):
                headers.append((b"connection", b"close"))
        else:
            super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals while serving, and put back what was there. Only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one.

    Raises:
        ServeError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ServeError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    return sock


def url_of(sock: socket.socket) -> str:
    """The base URL for OpenAI clients."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
