"""Several engines that run one model, behind the engine protocol: choosing, retrying, queueing, draining."""

from trillion_serve.routing.breaker import BreakerConfig
from trillion_serve.routing.config import PoolConfig, RetryConfig
from trillion_serve.routing.pool import Pool
from trillion_serve.routing.replica import Connect, HealthConfig, ReplicaSnapshot, ReplicaState

__all__ = [
    "BreakerConfig",
    "Connect",
    "HealthConfig",
    "Pool",
    "PoolConfig",
    "ReplicaSnapshot",
    "ReplicaState",
    "RetryConfig",
]
