"""Rates a minute, by the name of a key.

They are counted by the ``limits`` package in a sliding window, weighted from two counters, which costs the same for
a million tokens as for one. A step of the wall clock at worst forgets a minute: nobody is locked out by one.
"""

import math
import time
from typing import Literal

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.security.keys import ApiKey

What = Literal["requests", "tokens"]

_MINUTE = 60.0


class KeyRates:
    """What each key has used in the last minute."""

    def __init__(self) -> None:
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def take(self, key: ApiKey, what: What, cost: int) -> None:
        """Use up some of a key's rate.

        Raises:
            ApiError: it has not so much left (429, with the seconds after which it has), or never will have (400).
        """
        limit = _limit(key, what)
        if limit is None or not cost:
            return
        if cost > limit:
            raise ApiError(
                f"the prompt has {cost} tokens, and this key may use {limit} a minute; shorten it",
                code="prompt_too_long",
            )
        if not await self._windows.hit(_item(what, limit), key.name, cost=cost):
            left, seconds = await self._left(key, what, limit)
            raise ApiError(
                f"this key may use {limit} {what} a minute; {left} are left and {cost} were asked for",
                status=429,
                code="rate_limit_exceeded",
                # Beyond the next that comes free, the window gives back a minute's worth in a minute.
                headers={"Retry-After": _seconds(seconds + _MINUTE * (cost - left - 1) / limit)}
                | await self.headers(key),
            )

    async def spend(self, key: ApiKey, what: What, cost: int) -> None:
        """Count what was used already, up to all that is left: the past cannot be refused."""
        limit = _limit(key, what)
        if limit is not None and cost:
            left, _ = await self._left(key, what, limit)
            await self._windows.hit(_item(what, limit), key.name, cost=min(cost, left))

    async def headers(self, key: ApiKey) -> dict[str, str]:
        """The headers that tell a client what it has left."""
        told: dict[str, str] = {}
        for what in ("requests", "tokens"):
            limit = _limit(key, what)
            if limit is not None:
                left, seconds = await self._left(key, what, limit)
                told |= {
                    f"x-ratelimit-limit-{what}": str(limit),
                    f"x-ratelimit-remaining-{what}": str(left),
                    f"x-ratelimit-reset-{what}": f"{seconds:.3f}s",
                }
        return told

    async def _left(self, key: ApiKey, what: What, limit: int) -> tuple[int, float]:
        """What is left, and the seconds until it is more."""
        stats = await self._windows.get_window_stats(_item(what, limit), key.name)
        return stats.remaining, min(max(stats.reset_time - time.time(), 0.0), _MINUTE)


def _limit(key: ApiKey, what: What) -> int | None:
    return key.requests_per_minute if what == "requests" else key.tokens_per_minute


def _item(what: What, limit: int) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(limit, namespace=what)


def _seconds(seconds: float) -> str:
    return str(max(math.ceil(seconds), 1))
