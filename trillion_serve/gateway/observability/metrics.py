"""Prometheus metrics of what the gateway serves, under the names that vLLM's users know.

What vLLM calls a request is one answer here: a request for three answers counts three times in ``vllm:...`` and
once in ``trillion:requests_total``. Every application has a registry of its own.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from trillion_serve.chat.answer import AnswerFinish, Intervention

# vLLM's own, so that its dashboards and alerts fit.
_LATENCY = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN_TOKENS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_TOKENS = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))

_FINISHES = (*get_args(AnswerFinish), "abort", "error")
_BY_MODEL = ("model_name",)


class Observations:
    """A histogram's observations, for one set of labels."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int) -> None:
        """Add a value that was observed so many times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self.sum += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds, as Prometheus writes them, and how many observations are not above them."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class TokenHistogram(Collector):
    """A histogram by model that takes the tokens of a chunk in one step. Prometheus' own takes them one by one."""

    def __init__(self, name: str, documentation: str, buckets: tuple[float, ...]) -> None:
        self._name = name
        self._documentation = documentation
        self._buckets = buckets
        self._models: dict[str, Observations] = {}

    def labels(self, model_name: str) -> Observations:
        """The observations of a model."""
        return self._models.setdefault(model_name, Observations(self._buckets))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The histogram."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=_BY_MODEL)
        for model_name, observed in list(self._models.items()):
            family.add_metric([model_name], observed.buckets(), observed.sum)
        yield family


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """The metrics of one model, with their labels looked up."""

    first_token: Histogram
    between_tokens: Observations
    latency: Histogram
    queue_time: Histogram
    prompt_tokens: Counter
    generated_tokens: Counter
    reasoning_tokens: Counter
    reasoning_length: Histogram
    finishes: dict[str, Counter]
    interventions: dict[str, Counter]


class Metrics:
    """All metrics of an application but those that its engines tell."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        ProcessCollector(registry=self.registry)
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From the request's arrival to the answer's first token.", _FIRST_TOKEN
        )
        self._between_tokens = TokenHistogram(
            "vllm:inter_token_latency_seconds",
            "Time between tokens. Tokens that come together share the time since those before them.",
            _BETWEEN_TOKENS,
        )
        self.registry.register(self._between_tokens)
        self._latency = self._histogram(
            "vllm:e2e_request_latency_seconds", "From the request's arrival to the end of a finished answer.", _LATENCY
        )
        self._queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "Wait for a place in a replica, for each request to one.", _LATENCY
        )
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts.")
        self._generated_tokens = self._counter("vllm:generation_tokens", "Generated tokens, reasoning included.")
        self._finishes = self._counter(
            "vllm:request_success", "Answers by the way they ended; abort when the client left.", "finished_reason"
        )
        self._reasoning_tokens = self._counter("trillion:reasoning_tokens", "Generated tokens that were reasoning.")
        self._reasoning_length = self._histogram(
            "trillion:request_reasoning_tokens", "Reasoning tokens of a finished answer.", _TOKENS
        )
        self._interventions = self._counter(
            "trillion:interventions", "What was done to answers that the model would not have done.", "intervention"
        )
        self._requests = Counter("trillion:requests", "HTTP requests.", ("endpoint", "status"), registry=self.registry)
        self._rejected = Counter(
            "trillion:rejected",
            "HTTP requests that were turned away, by error code.",
            ("reason",),
            registry=self.registry,
        )

    def model(self, name: str) -> ModelMetrics:
        """The metrics of a model. Asking for them is enough to have them shown, at zero."""
        known = self._models.get(name)
        if known is None:
            known = self._models[name] = ModelMetrics(
                first_token=self._first_token.labels(name),
                between_tokens=self._between_tokens.labels(name),
                latency=self._latency.labels(name),
                queue_time=self._queue_time.labels(name),
                prompt_tokens=self._prompt_tokens.labels(name),
                generated_tokens=self._generated_tokens.labels(name),
                reasoning_tokens=self._reasoning_tokens.labels(name),
                reasoning_length=self._reasoning_length.labels(name),
                finishes={reason: self._finishes.labels(name, reason) for reason in _FINISHES},
                interventions={kind: self._interventions.labels(name, kind) for kind in Intervention},
            )
        return known

    def request(self, endpoint: str, status: int, rejected: str | None) -> None:
        """Count an HTTP request that has ended.

        Args:
            endpoint: the route, with its parameters as names.
            status: what it ended with.
            rejected: why it was turned away, if it was.
        """
        self._requests.labels(endpoint, str(status)).inc()
        if rejected is not None:
            self._rejected.labels(rejected).inc()

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, (*_BY_MODEL, *labels), registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, _BY_MODEL, registry=self.registry, buckets=buckets)
