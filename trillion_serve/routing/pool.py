"""A pool of engines that run one model, itself an engine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import tenacity

from trillion_serve.engines.protocol import Engine, EngineInfo, EngineStats, GenerateRequest, TokenDelta, TokenLogprob
from trillion_serve.errors import (
    EngineDeadError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    OverloadedError,
    RequestRefusedError,
    ServeError,
)
from trillion_serve.routing.admission import Admission, Lease
from trillion_serve.routing.breaker import CircuitBreaker, Clock
from trillion_serve.routing.config import PoolConfig
from trillion_serve.routing.replica import Connect, Replica, ReplicaSnapshot

T = TypeVar("T")
_Begun = tuple[Lease, TokenDelta, AsyncGenerator[TokenDelta, None]]


@dataclass(frozen=True)
class PoolSnapshot:
    """A pool at one moment.

    Attributes:
        waiting: requests in the queue.
        refused: requests turned away so far because the queue was full or the wait too long.
        retries: attempts so far beyond the first of each request.
    """

    replicas: tuple[ReplicaSnapshot, ...]
    waiting: int
    refused: int
    retries: int


class _ReplicaFullError(OverloadedError):
    """One replica is full; another may not be."""


@dataclass
class _Request:
    """A request in the pool's hands."""

    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    engine: Engine | None = None


class Pool:
    """Spreads requests over replicas. Add some, then await ``ready``.

    A request whose replica fails before its first token is tried again, elsewhere if possible; after that the
    failure is the caller's to see, since tokens cannot be taken back.

    Args:
        clock: seconds that only go forward, for the circuit breakers and for estimates.
    """

    def __init__(self, config: PoolConfig | None = None, *, clock: Clock = time.monotonic) -> None:
        self._config = config or PoolConfig()
        self._clock = clock
        self._admission = Admission(self._config, clock)
        self._requests: dict[str, _Request] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._retries = 0
        self._scores = 0
        self._last_info: EngineInfo | None = None

    def add(self, name: str, connect: Connect) -> None:
        """Add a replica. It takes requests as soon as it can be connected to.

        Raises:
            ServeError: the pool has one of that name, or is closing.
        """
        if self._closing:
            raise ServeError(f"replica {name} cannot be added: the pool is closing")
        if name in self._admission.replicas:
            raise ServeError(f"there is a replica {name} already; remove it first or choose another name")
        self._admission.replicas[name] = Replica(
            name,
            connect,
            health=self._config.health,
            breaker=CircuitBreaker(self._config.breaker, self._clock),
            on_change=self._admission.dispatch,
        )

    async def ready(self, seconds: float, names: Collection[str] | None = None) -> None:
        """Return when the first replica is connected, or the first with one of these names.

        Raises:
            EngineStartError: none is in time.
        """
        replicas = [r for r in self._admission.replicas.values() if names is None or r.name in names]
        waits = [asyncio.create_task(replica.connected.wait()) for replica in replicas]
        try:
            done = (await asyncio.wait(waits, timeout=seconds, return_when="FIRST_COMPLETED"))[0] if waits else set()
        finally:
            for wait in waits:
                wait.cancel()
        if not done:
            why = "; ".join(f"{replica.name}: {replica.last_error or 'no answer yet'}" for replica in replicas)
            raise EngineStartError(f"no engine was ready within {seconds:g} s ({why or 'the pool has no replica'})")

    async def drain(self, name: str, seconds: float | None = None) -> bool:
        """Send a replica nothing more and wait until it has finished; False if it has not in time.

        Raises:
            ServeError: there is no such replica.
        """
        replica = self._replica(name)
        replica.draining = True
        self._admission.dispatch()
        try:
            async with asyncio.timeout(seconds):
                await replica.idle.wait()
        except TimeoutError:
            return False
        return True

    async def remove(self, name: str, seconds: float | None = None) -> bool:
        """Drain a replica and close it; what is under way after ``seconds`` fails, and False is returned.

        Raises:
            ServeError: there is no such replica.
        """
        replica = self._replica(name)
        drained = await self.drain(name, seconds)
        if self._admission.replicas.get(name) is replica:
            self._remember_info()
            del self._admission.replicas[name]
            await replica.close()
        return drained

    def snapshot(self) -> PoolSnapshot:
        """What the pool is doing, in figures."""
        return PoolSnapshot(
            replicas=tuple(replica.snapshot() for replica in self._admission.replicas.values()),
            waiting=self._admission.waiting,
            refused=self._admission.refused,
            retries=self._retries,
        )

    @property
    def places(self) -> int:
        """Requests that may be under way at once in the replicas that take any."""
        return self._admission.places

    @property
    def info(self) -> EngineInfo:
        """The replicas together: the shortest context, the sum of the caches.

        Raises:
            EngineUnavailableError: none has been connected yet.
        """
        self._remember_info()
        if self._last_info is None:
            raise EngineUnavailableError("no replica has been connected yet; await ready() first")
        return self._last_info

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Continue the prompt in one of the replicas.

        Raises:
            OverloadedError: all are full, and so is the queue.
            EngineUnavailableError: no replica could begin the answer, or the one that did failed.
            RequestRefusedError: the engine refuses this request.
        """
        state = self._enter(request.request_id)
        try:
            begun = await self._begin(request, state)
            if begun is None:
                return
            lease, first, deltas = begun
            try:
                yield first
                async for delta in deltas:
                    yield delta
                lease.succeeded()
            except EngineUnavailableError as error:
                lease.failed(error)
                raise
            finally:
                await self._end(lease, deltas)
        finally:
            self._leave(request.request_id)

    async def abort(self, request_id: str) -> None:
        """Stop a request, wherever it is."""
        state = self._requests.get(request_id)
        if state is not None:
            state.aborted.set()
            self._admission.give_up(request_id)
            if state.engine is not None:
                await state.engine.abort(request_id)

    async def score(self, token_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of ``token_ids[1:]``, from one of the replicas."""
        self._scores += 1
        name = f"score-{self._scores}"
        state = self._enter(name)
        avoid: set[str] = set()
        blocks = self._admission.affinity.block_hashes(tuple(token_ids))

        async def attempt() -> list[TokenLogprob]:
            lease = await self._admission.acquire(name, blocks, avoid)
            assert lease is not None, "nobody aborts a score"
            try:
                with _judged(lease, avoid):
                    assert lease.replica.engine is not None
                    scored = await lease.replica.engine.score(token_ids, top_logprobs)
                lease.succeeded()
                return scored
            finally:
                self._admission.release(lease)

        try:
            return await self._retrying(attempt, state)
        finally:
            self._leave(name)

    async def health(self) -> None:
        """Return while a replica takes requests.

        Raises:
            EngineUnavailableError: none does.
        """
        self._check_open()
        self._admission.check_open()

    async def stats(self) -> EngineStats:
        """What the replicas that can be reached are doing: sums, the pool's own queue among those that wait, and
        the mean share of the caches that are known.
        """
        self._check_open()
        engines = [replica.engine for replica in self._admission.replicas.values() if replica.engine is not None]
        asked = await asyncio.gather(*(_stats_if_reached(engine) for engine in engines))
        told = [stats for stats in asked if stats is not None]
        usages = [stats.kv_cache_usage for stats in told if stats.kv_cache_usage is not None]
        return EngineStats(
            kv_cache_usage=sum(usages) / len(usages) if usages else None,
            running=sum(stats.running for stats in told),
            waiting=sum(stats.waiting for stats in told) + self._admission.waiting,
        )

    async def close(self) -> None:
        """Take no more requests, wait for those in hand as long as ``drain_timeout``, and close all replicas."""
        self._closing = True
        try:
            async with asyncio.timeout(self._config.drain_timeout):
                await self._idle.wait()
        except TimeoutError:
            for request_id in list(self._requests):
                await self.abort(request_id)
        self._remember_info()
        replicas = list(self._admission.replicas.values())
        self._admission.replicas.clear()
        await asyncio.gather(*(replica.close() for replica in replicas))

    async def _begin(self, request: GenerateRequest, state: _Request) -> _Begun | None:
        """The answer up to its first delta; None when the request was aborted before."""
        blocks = self._admission.affinity.block_hashes(request.prompt_token_ids)
        avoid: set[str] = set()

        async def attempt() -> _Begun | None:
            if state.aborted.is_set():
                return None
            lease = await self._admission.acquire(request.request_id, blocks, avoid)
            if lease is None:
                return None
            state.engine = lease.replica.engine
            assert state.engine is not None
            deltas = state.engine.generate(request)
            first = None
            try:
                with _judged(lease, avoid):
                    first = await anext(deltas, None)
            finally:
                if first is None:
                    await self._end(lease, deltas)
            if first is None:
                return None
            lease.answered()
            return lease, first, deltas

        return await self._retrying(attempt, state)

    async def _end(self, lease: Lease, deltas: AsyncGenerator[TokenDelta, None]) -> None:
        try:
            await deltas.aclose()
        finally:
            self._admission.release(lease)

    async def _retrying(self, attempt: Callable[[], Awaitable[T]], state: _Request) -> T:
        """Attempt it once, and again as configured when that fails for a reason that may pass."""
        try:
            return await attempt()
        except (EngineUnavailableError, _ReplicaFullError) as error:
            failures: list[Exception] = [error]

        async def next_attempt() -> T:
            if failures:
                raise failures.pop()
            return await attempt()

        def worth_it(error: BaseException) -> bool:
            return isinstance(error, EngineUnavailableError | _ReplicaFullError)

        def count(_: tenacity.RetryCallState) -> None:
            self._retries += 1

        async def pause(seconds: float) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await state.aborted.wait()

        retry = self._config.retry
        return await tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(worth_it),
            stop=tenacity.stop_after_attempt(retry.attempts),
            wait=tenacity.wait_random_exponential(multiplier=retry.first_wait, max=retry.longest_wait),
            before_sleep=count,
            sleep=pause,
            reraise=True,
        )(next_attempt)

    def _enter(self, request_id: str) -> _Request:
        self._check_open()
        self._idle.clear()
        return self._requests.setdefault(request_id, _Request())

    def _leave(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
        if not self._requests:
            self._idle.set()

    def _check_open(self) -> None:
        if self._closing:
            raise EngineDeadError("the pool of engines was closed")

    def _replica(self, name: str) -> Replica:
        try:
            return self._admission.replicas[name]
        except KeyError:
            names = ", ".join(self._admission.replicas) or "none"
            raise ServeError(f"there is no replica {name}; there are: {names}") from None

    def _remember_info(self) -> None:
        infos = [r.engine.info for r in self._admission.replicas.values() if r.engine is not None]
        if not infos:
            return
        sizes = [info.kv_bytes for info in infos if info.kv_bytes is not None]
        self._last_info = EngineInfo(
            engine=" + ".join(sorted({info.engine for info in infos})),
            model=infos[0].model,
            context_length=min(info.context_length for info in infos),
            kv_capacity_tokens=sum(info.kv_capacity_tokens for info in infos),
            kv_bytes=sum(sizes) if len(sizes) == len(infos) else None,
            dtype=infos[0].dtype,
        )


async def _stats_if_reached(engine: Engine) -> EngineStats | None:
    """An engine's figures; None when it does not answer, which its health checks tell in their own way."""
    try:
        return await engine.stats()
    except EngineError:
        return None


@contextmanager
def _judged(lease: Lease, avoid: set[str]) -> Iterator[None]:
    """Tell a replica's breaker, and the next attempt, what an attempt's error means."""
    try:
        yield
    except EngineUnavailableError as error:
        lease.failed(error)
        avoid.add(lease.replica.name)
        raise
    except OverloadedError as error:
        lease.succeeded()
        avoid.add(lease.replica.name)
        raise _ReplicaFullError(str(error), retry_after=error.retry_after) from error
    except RequestRefusedError:
        lease.succeeded()
        raise
