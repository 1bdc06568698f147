"""Metrics that engines tell when they are asked: how full they are, and which replicas are up."""

import asyncio
import logging
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trillion_serve.engines.protocol import EngineStats
from trillion_serve.errors import EngineError
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.routing import ReplicaState

logger = logging.getLogger(__name__)

_CIRCUITS = ("closed", "half_open", "open")


class EngineMetrics(Collector):
    """Await ``refresh``, then collect.

    Args:
        models: whose engines are asked.
        timeout: seconds that they have to answer; one that hangs does not hold up the others.
    """

    def __init__(self, models: Models, timeout: float) -> None:
        self._models = models
        self._timeout = timeout
        self._stats: dict[str, EngineStats | None] = {}

    async def refresh(self) -> None:
        """Ask every engine."""
        tasks = {model.name: asyncio.create_task(_ask(model)) for model in self._models}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=self._timeout)
        for task in tasks.values():
            # One that does not even end when cancelled is not waited for.
            task.cancel()
        self._stats = {name: task.result() if _is_over(task) else None for name, task in tasks.items()}

    def collect(self) -> Iterable[Metric]:
        """What the engines said last. Of one that gave no answer nothing is shown but that it is not up."""
        yield from self._engine_metrics()
        yield from self._replica_metrics()

    def _engine_metrics(self) -> Iterable[Metric]:
        by_model = ("model_name",)
        up = GaugeMetricFamily("trillion:engine_up", "Whether the engine tells what it is doing.", labels=by_model)
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests in the engine.", labels=by_model)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests in a queue.", labels=by_model)
        usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", labels=by_model)
        for name, stats in self._stats.items():
            up.add_metric([name], stats is not None)
            if stats is not None:
                running.add_metric([name], stats.running)
                waiting.add_metric([name], stats.waiting)
                if stats.kv_cache_usage is not None:
                    usage.add_metric([name], stats.kv_cache_usage)
        return up, running, waiting, usage

    def _replica_metrics(self) -> Iterable[Metric]:
        by_replica = ("model_name", "replica")
        up = GaugeMetricFamily("trillion:replica_up", "Whether a replica takes requests.", labels=by_replica)
        circuit = GaugeMetricFamily(
            "trillion:circuit_state", "1 for the state of a replica's circuit breaker.", labels=(*by_replica, "state")
        )
        retries = CounterMetricFamily("trillion:retries", "Attempts beyond a request's first.", labels=("model_name",))
        for model in self._models:
            if model.pool is not None:
                snapshot = model.pool.snapshot()
                retries.add_metric([model.name], snapshot.retries)
                for replica in snapshot.replicas:
                    up.add_metric([model.name, replica.name], replica.state is ReplicaState.READY)
                    for state in _CIRCUITS:
                        circuit.add_metric([model.name, replica.name, state], replica.breaker == state)
        return up, circuit, retries


def _is_over(task: "asyncio.Task[EngineStats | None]") -> bool:
    return task.done() and not task.cancelled()


async def _ask(model: ServedModel) -> EngineStats | None:
    """An engine's figures; None if it has none to tell."""
    try:
        return await model.engine.stats()
    except EngineError as error:
        logger.debug("the engine of %s does not tell its figures: %s", model.name, error)
    except Exception:
        logger.exception("the engine of %s failed to tell its figures", model.name)
    return None
