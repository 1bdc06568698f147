"""Engines behind HTTP: what the adapters to vLLM and SGLang servers have in common.

A request goes out as token ids and comes back as server-sent events. Whatever arrives at once is handled at
once: events that share a network read become one delta. The client is aiohttp, because it spends a
fifteenth of httpx's processor time on a streamed answer.
"""

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import aiohttp
import msgspec

from trillion_serve.engines.grammar import broken_by, without_foreign_end
from trillion_serve.engines.http_stream import Answer, FrameDecoder
from trillion_serve.engines.protocol import EngineInfo, EngineStats, GenerateRequest, TokenDelta, TokenLogprob
from trillion_serve.errors import (
    EngineDeadError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    OverloadedError,
    RequestRefusedError,
)
from trillion_serve.request_context import trace_headers

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_ERROR_BYTES = 64 * 2**10
_CLOSING_SECONDS = 0.05
# Shorter than the five seconds after which uvicorn closes an idle connection: reusing one that is being
# closed loses the request.
_KEEP_ALIVE_SECONDS = 3.0


@dataclass(frozen=True)
class HttpOptions:
    """Where a server is and how long to wait for it, in seconds.

    Attributes:
        url: base URL, without ``/v1``.
        model: the name it must serve the model under; None takes the only one it serves.
        api_key: sent as a bearer token.
        connect_timeout: until a connection stands, a free place among ``max_connections`` included.
        first_token_timeout: from sending a request to its first token, the server's own queue included.
        between_tokens_timeout: from one delta to the next.
        total_timeout: for the whole answer; None for no limit.
        health_timeout: for health checks and everything else that is not generation.
        max_connections: most connections to this server at once.
    """

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    connect_timeout: float = 5.0
    first_token_timeout: float = 300.0
    between_tokens_timeout: float = 60.0
    total_timeout: float | None = 3600.0
    health_timeout: float = 5.0
    max_connections: int = 2048


class _Aborted(Exception):
    """The request under way was aborted from outside."""


class _Call:
    """A request under way, and how long to wait for what it does next.

    Time is the event loop's, which is monotonic: steps of the wall clock change nothing.
    """

    def __init__(self, url: str, total: float | None) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._total = total
        self._end = math.inf if total is None else self._loop.time() + total
        self._due = self._end
        self._expected = ("", 0.0)
        self._scope: asyncio.Timeout | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._reading = self._late = False
        self.response: aiohttp.ClientResponse | None = None
        self.aborted = False
        self.taken = True
        """Whether the server may be working on it."""

    def expect(self, what: str, seconds: float) -> None:
        """Give the server so long from now for what comes next."""
        self._expected = (what, seconds)
        self._due = min(self._loop.time() + seconds, self._end)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Wait for the network.

        Raises:
            EngineUnavailableError: the connection failed, or what is expected did not come in time.
            EngineError: the whole request took too long.
            _Aborted: ``abort`` was called.
        """
        try:
            async with asyncio.timeout_at(self._due if self._due < math.inf else None) as self._scope:
                result = await awaitable
        except (aiohttp.ClientError, OSError) as error:
            self._late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError)
            raise self._failure(error) from error
        finally:
            self._scope = None
        if self.aborted:
            raise _Aborted
        return result

    async def read(self) -> bytes:
        """What has come of the response, as soon as anything has; nothing at its end.

        One alarm watches over all reads of a response, so that a read costs none of its own.

        Raises:
            EngineUnavailableError, EngineError, _Aborted: as ``wait`` does.
        """
        assert self.response is not None
        if self._due < math.inf and (self._alarm is None or self._due < self._alarm.when()):
            self._set_alarm()
        self._reading = True
        try:
            data = await self.response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise self._failure(error) from error
        finally:
            self._reading = False
        if self.aborted:
            raise _Aborted
        return data

    def abort(self) -> None:
        """End the wait, now and from now on."""
        self.aborted = True
        if self.response is not None:
            self.response.close()
        if self._scope is not None:
            self._scope.reschedule(self._loop.time())

    def release(self) -> None:
        """Let go of the response. Its connection is kept if it was read to its end."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self.response is not None:
            self.response.release()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if not self._reading:
            return  # it is our own reader that takes its time
        if self._loop.time() < self._due:
            self._set_alarm()
            return
        self._late = True
        assert self.response is not None
        self.response.close()

    def _failure(self, error: Exception) -> Exception:
        if self.aborted:
            return _Aborted()
        self.taken = self.taken and not isinstance(error, aiohttp.ClientConnectorError)
        if not self._late:
            return EngineUnavailableError(f"{self._url}: {error or type(error).__name__}")
        if self._total is not None and self._due == self._end:
            return EngineError(f"{self._url}: the answer took longer than {self._total:g} s")
        what, seconds = self._expected
        return EngineUnavailableError(f"{self._url}: no {what} within {seconds:g} s")


class HttpEngine(ABC):
    """A server somewhere that runs the engine. Use ``connect`` of a subclass."""

    generate_path: ClassVar[str]

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._url = options.url.rstrip("/")
        self._info: EngineInfo | None = None
        self._calls: dict[str, _Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        headers = {"Content-Type": "application/json"}
        if options.api_key:
            headers["Authorization"] = f"Bearer {options.api_key}"
        # aiohttp sets TCP_NODELAY itself.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=options.max_connections, keepalive_timeout=_KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(connect=options.connect_timeout),
            headers=headers,
        )

    @classmethod
    async def connect(cls, options: HttpOptions) -> Self:
        """Ask the server what it runs.

        Raises:
            EngineUnavailableError: it cannot be reached, or is not ready.
            EngineStartError: it does not serve the model, or is not a server of this kind.
        """
        engine = cls(options)
        try:
            engine._info = await engine._fetch_info()
        except RequestRefusedError as error:
            await engine.close()
            raise EngineStartError(
                f"{options.url} is not this kind of server, or wants another key: {error}"
            ) from error
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def info(self) -> EngineInfo:
        """What runs there, as ``connect`` found it."""
        assert self._info is not None, "connect() sets it"
        return self._info

    @abstractmethod
    async def _fetch_info(self) -> EngineInfo: ...

    @abstractmethod
    def _body(self, request: GenerateRequest) -> dict[str, Any]: ...

    @abstractmethod
    def _answer(self, request: GenerateRequest) -> Answer: ...

    @abstractmethod
    async def score(self, token_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of ``token_ids[1:]``."""

    @abstractmethod
    async def stats(self) -> EngineStats:
        """What the server is doing."""

    def _own_stats(self) -> EngineStats:
        """What is known of a server that tells no figures: the requests that it has from here."""
        return EngineStats(kv_cache_usage=None, running=len(self._calls), waiting=0)

    @abstractmethod
    async def _stop_upstream(self, request_id: str) -> None:
        """Do what it takes to stop a request besides closing its connection."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Continue the prompt; closing the generator closes the connection, which aborts the request there.

        Raises:
            EngineUnavailableError: the server cannot be reached, broke off, hangs, or sends nonsense.
            OverloadedError: the server says that it is full.
            RequestRefusedError: the server refuses this request.
            EngineError: the answer took longer than ``total_timeout``.
        """
        self._check_open()
        answer = self._answer(request)
        call = self._calls[request.request_id] = _Call(self._url, self._options.total_timeout)
        try:
            call.expect("token", self._options.first_token_timeout)
            await self._send(call, self.generate_path, self._body(request))
            frames = FrameDecoder()
            while chunk := await self._next_chunk(call, answer):
                for payload in frames.decode(chunk):
                    if payload != b"[DONE]":
                        self._feed(answer, payload)
                if answer.finish_reason is not None:
                    # The count of cached tokens may follow, and only a connection read to its end can be used again.
                    call.expect("end of the answer", _CLOSING_SECONDS)
                elif answer.pending:
                    yield answer.take()
                    call.expect("token", self._options.between_tokens_timeout)
            if answer.finish_reason is None:
                raise EngineUnavailableError(f"{self._url}: the answer broke off")
            yield without_foreign_end(answer.take(), request.sampling)
        except _Aborted:
            return
        finally:
            self._calls.pop(request.request_id, None)
            call.release()
            if answer.finish_reason is None and call.taken and not call.aborted:
                self._in_background(self._stop_upstream(request.request_id))

    async def _next_chunk(self, call: _Call, answer: Answer) -> bytes:
        try:
            return await call.read()
        except EngineError:
            if answer.finish_reason is None:
                raise
            return b""

    def _feed(self, answer: Answer, payload: bytes) -> None:
        try:
            answer.feed(payload)
        except msgspec.DecodeError as error:
            raise EngineUnavailableError(f"{self._url} sent an event that cannot be read: {error}") from error
        except EngineUnavailableError as error:
            if answer.grammar is None:
                raise
            # Servers do not say what they failed at. Were it held against them, a few requests could shut all out.
            raise broken_by(answer.grammar, answer.begun, str(error)) from error

    async def abort(self, request_id: str) -> None:
        """Stop a request and close its connection."""
        call = self._calls.get(request_id)
        if call is not None and not call.aborted:
            call.abort()
            await self._stop_upstream(request_id)

    async def health(self) -> None:
        """Return when the server says that it can take requests.

        Raises:
            EngineUnavailableError: it does not.
        """
        self._check_open()
        await self._fetch("/health")

    async def close(self) -> None:
        """Abort what is under way and close all connections; the server itself goes on."""
        await asyncio.gather(*(self.abort(request_id) for request_id in list(self._calls)))
        await asyncio.gather(*self._tasks)
        await self._session.close()

    def _check_open(self) -> None:
        if self._session.closed:
            raise EngineDeadError(f"the connection to {self._url} was closed")

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, call: _Call, path: str, body: Any) -> aiohttp.ClientResponse:
        method = "GET" if body is None else "POST"
        data = None if body is None else msgspec.json.encode(body)
        sending = self._session.request(
            method, self._url + path, data=data, headers=trace_headers.get(), allow_redirects=False
        )
        response = call.response = await call.wait(sending)
        if response.status != 200:
            call.taken = False
            call.expect("end of the error", self._options.health_timeout)
            message = _error_message(await call.wait(response.content.read(_MAX_ERROR_BYTES)), response.reason)
            raise error_of(response.status, message, self._url, response.headers.get("Retry-After"))
        return response

    async def _fetch(self, path: str, body: Any = None, seconds: float | None = None) -> bytes:
        """The body of a whole answer: GET, or POST when there is a body to send."""
        call = _Call(self._url, None)
        call.expect("answer", self._options.health_timeout if seconds is None else seconds)
        try:
            response = await self._send(call, path, body)
            return await call.wait(response.read())
        finally:
            call.release()

    async def _fetch_as(self, kind: type[T], path: str, body: Any = None, seconds: float | None = None) -> T:
        """The JSON of a whole answer."""
        try:
            return msgspec.json.decode(await self._fetch(path, body, seconds), type=kind)
        except msgspec.DecodeError as error:
            raise EngineUnavailableError(f"{self._url}{path} sent an answer that cannot be read: {error}") from error


def error_of(status: int, message: str, url: str, retry_after: str | None = None) -> EngineError:
    """Our error for an HTTP status: 429 overloaded, other 4xx the request's fault, the rest the server's."""
    if status == 429:
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else 1.0
        return OverloadedError(f"the engine is full: {message}", retry_after=seconds)
    if 400 <= status < 500:
        return RequestRefusedError(f"the engine refuses the request ({status}): {message}")
    return EngineUnavailableError(f"{url} failed ({status}): {message}")


def _error_message(body: bytes, reason: str | None) -> str:
    """The message in any of the shapes that servers give errors."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    while isinstance(told, dict):
        told = told.get("error") or told.get("message") or told.get("detail")
    return str(told or reason or "no reason given")


def check_scorable(token_ids: Sequence[int]) -> None:
    """Refuse to score nothing.

    Raises:
        RequestRefusedError: the sequence is empty.
    """
    if not token_ids:
        raise RequestRefusedError("there is nothing to score: the sequence is empty")
