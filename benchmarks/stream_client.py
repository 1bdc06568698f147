"""A client that costs little enough to leave the measuring to what it measures.

So many connections at once, each sending its next request when its last one is answered.
"""

import asyncio
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: seconds to the first byte of its body, seconds to the last, and its status; 0 for none."""

    ttft: float
    total: float
    status: int


@dataclass
class Load:
    """What to send.

    Attributes:
        url: base URL of the server, without ``/v1``.
        body: the JSON of each request.
        concurrency: connections at once.
        requests: how many to send in all.
        seconds: no request is begun after so long.
        spread: seconds over which the connections send their first requests.
        path: where to.
        timeout: seconds after which a request has failed.
    """

    url: str
    body: bytes
    concurrency: int
    requests: int
    seconds: float = 60.0
    spread: float = 0.0
    path: str = "/v1/chat/completions"
    timeout: float = 60.0
    headers: dict[str, str] = field(default_factory=dict)


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Sample] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._finish(0)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self._first is None:
            self._first = time.perf_counter()

    def on_message_complete(self) -> None:
        self._finish(self._parser.get_status_code())

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, seconds: float) -> Sample:
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self._first: float | None = None
        self._sent = time.perf_counter()
        self._transport.write(self._request)
        try:
            async with asyncio.timeout(seconds):
                return await self._answer
        except TimeoutError:
            self._transport.abort()
            return Sample(seconds, seconds, 0)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            now = time.perf_counter()
            first = now if self._first is None else self._first
            self._answer.set_result(Sample(first - self._sent, now - self._sent, status))


async def send(load: Load) -> tuple[list[Sample], float]:
    """Send it; every request's figures, and the seconds that all took."""
    address = urlsplit(load.url)
    assert address.hostname in ("127.0.0.1", "localhost"), "loads go to the loopback only"
    headers = {"Host": address.netloc, "Content-Type": "application/json", "Content-Length": str(len(load.body))}
    lines = [f"POST {load.path} HTTP/1.1", *(f"{k}: {v}" for k, v in (headers | load.headers).items())]
    request = "\r\n".join([*lines, "", ""]).encode() + load.body
    left = load.requests
    began = time.perf_counter()
    samples: list[Sample] = []

    async def worker(number: int) -> None:
        nonlocal left
        connection: _Connection | None = None
        await asyncio.sleep(load.spread * number / load.concurrency)
        while left > 0 and time.perf_counter() - began < load.seconds:
            left -= 1
            if connection is None or not connection.open:
                try:
                    _, connection = await asyncio.get_running_loop().create_connection(
                        lambda: _Connection(request), address.hostname, address.port
                    )
                except OSError:
                    samples.append(Sample(0.0, 0.0, 0))
                    await asyncio.sleep(0.01)
                    continue
            samples.append(await connection.ask(load.timeout))
        if connection is not None:
            connection.close()

    await asyncio.gather(*(worker(number) for number in range(load.concurrency)))
    return samples, time.perf_counter() - began
