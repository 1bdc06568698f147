"""The latest figures of a vLLM in this process. Imports vLLM."""

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import SchedulerStats

from trillion_serve.engines.protocol import EngineStats


class LatestStats(PrometheusStatLogger):
    """Keeps what the schedulers said last.

    It is a ``PrometheusStatLogger`` by name only. Without one of those vLLM makes its own, which throws every
    collector called ``vllm:...`` out of this process's registry and counts each token into a hundred of its own.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
        self._latest: dict[int, SchedulerStats] = {}

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Remember the figures of a step."""
        if scheduler_stats is not None:
            self._latest[engine_idx] = scheduler_stats

    def log_engine_initialized(self) -> None:
        """Nothing to do."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Nothing to do."""

    def record_admission_rejection(self, reason: str) -> None:
        """Nothing to do."""

    def read(self) -> EngineStats:
        """The engines together: sums, and the mean share of their caches."""
        latest = self._latest.values()
        return EngineStats(
            kv_cache_usage=sum(stats.kv_cache_usage for stats in latest) / len(latest) if latest else 0.0,
            running=sum(stats.num_running_reqs for stats in latest),
            waiting=sum(stats.num_waiting_reqs + stats.num_skipped_waiting_reqs for stats in latest),
        )
