"""A circuit breaker: a replica that keeps failing is left alone for a while, then tried with one request."""

import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]
"""Seconds that only ever go forward, such as ``time.monotonic``."""


@dataclass(frozen=True)
class BreakerConfig:
    """When a breaker opens and closes.

    Attributes:
        failures: so many failures in a row open it.
        open_seconds: how long it stays open the first time; each failed probe doubles that.
        most_open_seconds: it never stays open longer.
    """

    failures: int = 5
    open_seconds: float = 2.0
    most_open_seconds: float = 60.0


@dataclass(frozen=True)
class Permit:
    """Leave to send one request. ``probe`` is set while the breaker is finding out whether to close."""

    probe: bool


class CircuitBreaker:
    """Closed, it lets everything through; open, nothing; half open, one probe at a time."""

    def __init__(self, config: BreakerConfig, clock: Clock = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._failures = 0
        self._opened = 0
        self._open_until = 0.0
        self._probing = False

    @property
    def state(self) -> str:
        """ "closed", "open" or "half_open"."""
        if not self._opened:
            return "closed"
        return "open" if self._clock() < self._open_until else "half_open"

    @property
    def ready(self) -> bool:
        """Whether ``enter`` may be called."""
        return self.state == "closed" or (self.state == "half_open" and not self._probing)

    @property
    def retry_in(self) -> float:
        """Seconds until a probe is allowed; 0 when one is now."""
        return max(self._open_until - self._clock(), 0.0) if self._opened else 0.0

    def enter(self) -> Permit:
        """Take leave for one request, which must end in ``success``, ``failure`` or ``cancel``."""
        assert self.ready, "ask ready first"
        permit = Permit(probe=bool(self._opened))
        self._probing = self._probing or permit.probe
        return permit

    def success(self, permit: Permit) -> None:
        """The replica answered, be it with a refusal."""
        if permit.probe:
            self._probing = False
            self._opened = 0
        if not self._opened:
            self._failures = 0

    def failure(self, permit: Permit) -> None:
        """The replica could not be reached, or failed. What began before it opened no longer counts."""
        if permit.probe:
            self._probing = False
        elif self._opened:
            return
        self._failures += 1
        if permit.probe or self._failures >= self._config.failures:
            seconds = min(self._config.open_seconds * 2**self._opened, self._config.most_open_seconds)
            self._open_until = self._clock() + seconds
            self._opened = min(self._opened + 1, 32)

    def cancel(self, permit: Permit) -> None:
        """The request was given up before it showed anything."""
        if permit.probe:
            self._probing = False
