"""The configuration of a pool."""

import math
from dataclasses import dataclass, field
from typing import Literal

from trillion_model.errors import ConfigError
from trillion_serve.routing.affinity import AffinityConfig
from trillion_serve.routing.breaker import BreakerConfig
from trillion_serve.routing.replica import HealthConfig

_LEAST_SECONDS = 0.001
"""Checks that follow one another at once would be all that a gateway does."""


@dataclass(frozen=True)
class RetryConfig:
    """How often a request is tried before its first token. It waits a random time below a bound that doubles.

    Attributes:
        attempts: tries in all.
        first_wait: bound of the first wait in seconds.
        longest_wait: no bound is larger.
    """

    attempts: int = 3
    first_wait: float = 0.1
    longest_wait: float = 2.0


@dataclass(frozen=True)
class PoolConfig:
    """How a pool spreads requests. Times are in seconds.

    Attributes:
        policy: "prefix" sends a prompt where its beginning was seen last, "least_load" where least is running.
        load_factor: with "prefix", a replica takes at most so many times the mean load; 1 is a strict balance.
        max_concurrency: most requests under way in one replica; more wait in the pool's queue.
        queue_size: most requests waiting; more are refused.
        queue_timeout: longest wait in the queue.
        drain_timeout: how long closing the pool waits for requests under way.

    Raises:
        ConfigError: a value is out of range.
    """

    policy: Literal["prefix", "least_load"] = "prefix"
    load_factor: float = 1.25
    max_concurrency: int = 256
    queue_size: int = 1024
    queue_timeout: float = 30.0
    drain_timeout: float = 600.0
    retry: RetryConfig = field(default_factory=RetryConfig)
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    affinity: AffinityConfig = field(default_factory=AffinityConfig)

    def __post_init__(self) -> None:
        if self.policy not in ("prefix", "least_load"):
            raise ConfigError("policy", self.policy, "prefix or least_load")
        least: dict[str, tuple[float, float]] = {
            "load_factor": (self.load_factor, 1.0),
            "max_concurrency": (self.max_concurrency, 1),
            "queue_size": (self.queue_size, 0),
            "queue_timeout": (self.queue_timeout, 0),
            "drain_timeout": (self.drain_timeout, 0),
            "retry.attempts": (self.retry.attempts, 1),
            "retry.first_wait": (self.retry.first_wait, 0),
            "retry.longest_wait": (self.retry.longest_wait, 0),
            "breaker.failures": (self.breaker.failures, 1),
            "breaker.open_seconds": (self.breaker.open_seconds, _LEAST_SECONDS),
            "breaker.most_open_seconds": (self.breaker.most_open_seconds, _LEAST_SECONDS),
            "health.interval": (self.health.interval, _LEAST_SECONDS),
            "health.timeout": (self.health.timeout, _LEAST_SECONDS),
            "health.failures": (self.health.failures, 1),
            "affinity.block_tokens": (self.affinity.block_tokens, 1),
            "affinity.most_blocks": (self.affinity.most_blocks, 1),
            "affinity.remembered_blocks": (self.affinity.remembered_blocks, 0),
        }
        for name, (value, bound) in least.items():
            if not bound <= value < math.inf:
                raise ConfigError(name, value, f"{bound:g} or more, and finite")
