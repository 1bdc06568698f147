"""One engine of a pool: connected to, watched, and counted."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from trillion_serve.engines.protocol import Engine, EngineInfo
from trillion_serve.errors import EngineError
from trillion_serve.routing.breaker import CircuitBreaker, Permit

logger = logging.getLogger(__name__)

Connect = Callable[[], Awaitable[Engine]]
"""Makes the engine of a replica; called again until it succeeds."""


@dataclass(frozen=True)
class HealthConfig:
    """How replicas are watched. Times are in seconds.

    Attributes:
        interval: between two checks, and between two attempts to connect.
        timeout: a check that takes longer has failed.
        failures: so many failed checks in a row take a replica out; one that succeeds brings it back.
    """

    interval: float = 5.0
    timeout: float = 5.0
    failures: int = 2


class ReplicaState(StrEnum):
    """What a replica is doing."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    BROKEN = "broken"
    DRAINING = "draining"


@dataclass(frozen=True)
class ReplicaSnapshot:
    """A replica at one moment.

    Attributes:
        breaker: state of its circuit breaker.
        running: requests under way.
        requests: requests it was sent so far.
        failures: how many of them it failed.
        last_error: what went wrong last, if anything did.
        info: None until it was connected.
    """

    name: str
    state: ReplicaState
    breaker: str
    running: int
    requests: int
    failures: int
    last_error: str | None
    info: EngineInfo | None


class Replica:
    """An engine under a name. ``watch`` connects it and keeps ``healthy`` true or false.

    Args:
        on_change: called whenever the replica may have begun or ceased to take requests.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        *,
        health: HealthConfig,
        breaker: CircuitBreaker,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.breaker = breaker
        self.engine: Engine | None = None
        self.healthy = False
        self.draining = False
        self.running = 0
        self.requests = 0
        self.failures = 0
        self.last_error: str | None = None
        self.connected = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._connect = connect
        self._health = health
        self.changed = on_change
        self._watch = asyncio.get_running_loop().create_task(self._watching(), name=f"watch {name}")

    @property
    def up(self) -> bool:
        """Whether a request may wait for it."""
        return self.healthy and not self.draining and self.breaker.state != "open"

    @property
    def takes_requests(self) -> bool:
        """Whether it would take a request now if it had room."""
        return self.up and self.breaker.ready

    @property
    def state(self) -> ReplicaState:
        """What it is doing."""
        if self.draining:
            return ReplicaState.DRAINING
        if not self.healthy:
            return ReplicaState.STARTING if self.engine is None else ReplicaState.UNHEALTHY
        return ReplicaState.READY if self.breaker.state == "closed" else ReplicaState.BROKEN

    def begin(self) -> Permit:
        """Count a request that is about to be sent."""
        self.running += 1
        self.requests += 1
        self.idle.clear()
        return self.breaker.enter()

    def end(self) -> None:
        """Count a request as over."""
        self.running -= 1
        if not self.running:
            self.idle.set()

    def failed(self, error: Exception, permit: Permit) -> None:
        """Count a request that the replica failed."""
        self.failures += 1
        self.last_error = str(error)
        self.breaker.failure(permit)

    def snapshot(self) -> ReplicaSnapshot:
        """What it is doing, in figures."""
        return ReplicaSnapshot(
            name=self.name,
            state=self.state,
            breaker=self.breaker.state,
            running=self.running,
            requests=self.requests,
            failures=self.failures,
            last_error=self.last_error,
            info=None if self.engine is None else self.engine.info,
        )

    async def close(self) -> None:
        """Stop watching and close the engine."""
        self._watch.cancel()
        await asyncio.wait([self._watch])
        self.healthy = False
        if self.engine is not None:
            await self.engine.close()

    async def _watching(self) -> None:
        failures = 0
        while True:
            check = self._open if self.engine is None else self._ask_health
            failures = 0 if await self._checked(check) else failures + 1
            healthy = self.engine is not None and failures < self._health.failures
            if healthy != self.healthy:
                logger.warning("replica %s is %s", self.name, "up" if healthy else f"out: {self.last_error}")
            self.healthy = healthy
            self.changed()
            await asyncio.sleep(self._health.interval)

    async def _open(self) -> None:
        self.engine = await self._connect()
        self.healthy = True
        self.connected.set()

    async def _ask_health(self) -> None:
        assert self.engine is not None
        async with asyncio.timeout(self._health.timeout):
            await self.engine.health()

    async def _checked(self, check: Callable[[], Awaitable[None]]) -> bool:
        """Whether a check succeeded. The watch goes on whatever goes wrong."""
        try:
            await check()
        except TimeoutError:
            self.last_error = f"no answer to the health check within {self._health.timeout:g} s"
        except EngineError as error:
            self.last_error = str(error)
        except Exception as error:
            logger.exception("watching replica %s failed", self.name)
            self.last_error = f"{type(error).__name__}: {error}"
        else:
            return True
        return False
