"""Who goes where and who waits: a place in a replica for each request, or a place in a bounded queue."""

import asyncio
import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from trillion_serve.errors import EngineUnavailableError, OverloadedError
from trillion_serve.request_context import on_queued
from trillion_serve.routing.affinity import PrefixAffinity
from trillion_serve.routing.breaker import Clock, Permit
from trillion_serve.routing.config import PoolConfig
from trillion_serve.routing.replica import Replica

_MOST_RETRY_AFTER = 60.0


@dataclass
class Lease:
    """A place in a replica. Give it back with ``Admission.release``."""

    replica: Replica
    permit: Permit | None
    since: float

    def answered(self) -> None:
        """The first token is here: a probe need not wait for the last one."""
        if self.permit is not None and self.permit.probe:
            self.replica.breaker.success(self.permit)
            self.permit = Permit(probe=False)
            self.replica.changed()

    def succeeded(self) -> None:
        """The replica did what it was asked, or refused it for a reason."""
        if self.permit is not None:
            self.replica.breaker.success(self.permit)
            self.permit = None

    def failed(self, error: Exception) -> None:
        """The replica failed the request."""
        if self.permit is not None:
            self.replica.failed(error, self.permit)
            self.permit = None


@dataclass
class _Waiter:
    request_id: str
    blocks: Sequence[int]
    avoid: Collection[str]
    lease: asyncio.Future[Lease | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """Chooses a replica for each request, and lets requests wait in turn while all are full."""

    def __init__(self, config: PoolConfig, clock: Clock) -> None:
        self.replicas: dict[str, Replica] = {}
        self.affinity = PrefixAffinity(config.affinity)
        self.refused = 0
        self._config = config
        self._clock = clock
        self._waiters: deque[_Waiter] = deque()
        self._request_seconds = 1.0

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiters)

    @property
    def places(self) -> int:
        """Requests that may be under way at once in the replicas that take any."""
        return sum(replica.up for replica in self.replicas.values()) * self._config.max_concurrency

    async def acquire(self, request_id: str, blocks: Sequence[int], avoid: Collection[str] = ()) -> Lease | None:
        """A place for a prompt with these block hashes, not in ``avoid`` if that can be helped.

        Returns None when ``give_up`` was called for the request.

        Raises:
            EngineUnavailableError: no replica takes requests.
            OverloadedError: the queue is full, or the wait in it was too long.
        """
        lease = None if self._waiters else self._take(blocks, avoid)
        if lease is not None:
            on_queued.get()(0.0)
            return lease
        self.check_open()
        if len(self._waiters) >= self._config.queue_size:
            raise self._overloaded(f"{len(self._waiters)} requests are waiting already")
        waiter = _Waiter(request_id, blocks, avoid)
        self._waiters.append(waiter)
        since = self._clock()
        try:
            async with asyncio.timeout(self._config.queue_timeout):
                lease = await waiter.lease
        except BaseException as error:
            self._leave(waiter)
            if isinstance(error, TimeoutError):
                raise self._overloaded(f"no place came free within {self._config.queue_timeout:g} s") from error
            raise
        on_queued.get()(self._clock() - since)
        return lease

    def release(self, lease: Lease) -> None:
        """Give a place back."""
        if lease.permit is not None:
            lease.replica.breaker.cancel(lease.permit)
            lease.permit = None
        self._request_seconds += 0.1 * (self._clock() - lease.since - self._request_seconds)
        lease.replica.end()
        self.dispatch()

    def give_up(self, request_id: str) -> None:
        """End a request's wait, if it is waiting."""
        for waiter in self._waiters:
            if waiter.request_id == request_id and not waiter.lease.done():
                waiter.lease.set_result(None)
        self.dispatch()

    def dispatch(self) -> None:
        """Let in who can be, in turn. When nobody ever will be, say so to all."""
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.lease.done():
                lease = self._take(waiter.blocks, waiter.avoid)
                if lease is None:
                    break
                waiter.lease.set_result(lease)
            self._waiters.popleft()
        try:
            self.check_open()
        except EngineUnavailableError as error:
            for waiter in self._waiters:
                if not waiter.lease.done():
                    waiter.lease.set_exception(error)
            self._waiters.clear()

    def check_open(self) -> None:
        """Return while a replica takes requests, or may once its probe is back.

        Raises:
            EngineUnavailableError: none does.
        """
        if not any(replica.up for replica in self.replicas.values()):
            states = ", ".join(f"{replica.name} is {replica.state}" for replica in self.replicas.values())
            raise EngineUnavailableError(f"no engine takes requests: {states or 'there is none'}")

    def _take(self, blocks: Sequence[int], avoid: Collection[str]) -> Lease | None:
        takers = [replica for replica in self.replicas.values() if replica.takes_requests]
        roomy = [replica for replica in takers if replica.running < self._config.max_concurrency]
        if not roomy:
            return None
        roomy = [replica for replica in roomy if replica.name not in avoid] or roomy
        bound = math.ceil(self._config.load_factor * (sum(replica.running for replica in takers) + 1) / len(takers))
        chosen = min(roomy, key=lambda replica: (replica.running, replica.requests))
        if self._config.policy == "prefix":
            ranked = self.affinity.rank(blocks, [replica.name for replica in roomy if replica.running < bound])
            chosen = self.replicas[ranked[0]] if ranked else chosen
            self.affinity.learn(blocks, chosen.name)
        return Lease(chosen, chosen.begin(), self._clock())

    def _leave(self, waiter: _Waiter) -> None:
        """Take back what a wait that was broken off holds."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        lease = waiter.lease
        if lease.done() and not lease.cancelled() and lease.exception() is None:
            given = lease.result()
            if given is not None:
                self.release(given)

    def _overloaded(self, what: str) -> OverloadedError:
        self.refused += 1
        seconds = (len(self._waiters) + 1) * self._request_seconds / max(self.places, 1)
        return OverloadedError(
            f"the engines are busy: {what}; try again later",
            retry_after=min(max(seconds, 1.0), _MOST_RETRY_AFTER),
        )
