"""What is known of a request while it is served: gathered in one place for log line, metrics and trace."""

import json
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Self

from trillion_serve.chat.answer import AnswerDelta, AnswerRequest
from trillion_serve.gateway.observability.metrics import Metrics, ModelMetrics

_CLIENT_CLOSED_REQUEST = 499


class AnswerWatch:
    """Follows one answer: shown every delta, inside a ``with`` block that lasts as long as the answer.

    Args:
        started: ``perf_counter`` at the request's arrival.
        metrics: of the model; None observes nothing.

    Attributes:
        last: the latest delta; its counts are totals. None before the first.
        first_token: seconds from the request's arrival to its first token; None while there is none.
        finish: how it ended: as the answer says, or "abort" or "error".
    """

    __slots__ = ("_at", "_metrics", "_reasoning_tokens", "_started", "_tokens", "finish", "first_token", "last")

    def __init__(self, started: float, metrics: ModelMetrics | None) -> None:
        self.last: AnswerDelta | None = None
        self.first_token: float | None = None
        self.finish: str | None = None
        self._started = started
        self._metrics = metrics
        self._tokens = 0
        self._reasoning_tokens = 0
        self._at = 0.0

    def saw(self, delta: AnswerDelta) -> None:
        """Count what a delta adds."""
        new = delta.tokens - self._tokens
        self.last = delta
        if new < 1:
            return
        now = perf_counter()
        metrics = self._metrics
        if self.first_token is None:
            self.first_token = now - self._started
            if metrics is not None:
                metrics.first_token.observe(self.first_token)
        elif metrics is not None:
            metrics.between_tokens.observe((now - self._at) / new, new)
        if metrics is not None:
            metrics.generated_tokens.inc(new)
            if delta.reasoning_tokens != self._reasoning_tokens:
                metrics.reasoning_tokens.inc(delta.reasoning_tokens - self._reasoning_tokens)
        self._at = now
        self._tokens = delta.tokens
        self._reasoning_tokens = delta.reasoning_tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        finished = self.last.finish_reason if self.last is not None else None
        self.finish = finished or ("error" if isinstance(error, Exception) else "abort")
        if self._metrics is None:
            return
        self._metrics.finishes[self.finish].inc()
        if self.last is not None:
            for intervention in self.last.interventions:
                self._metrics.interventions[intervention].inc()
        if finished:
            self._metrics.latency.observe(perf_counter() - self._started)
            self._metrics.reasoning_length.observe(self._reasoning_tokens)


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request.

    Attributes:
        started: ``perf_counter`` at its arrival.
        model: name of the model that answers, once that is known.
        requests: what was asked of it.
        answers: its answers, in the order in which they began.
        queued: seconds that its requests to engines waited for a place, all together; None if none was asked.
        response_status: HTTP status that was sent.
        complete: whether all of the response was sent.
        client_gone: whether the client left before that.
        error_code: the code of the error that the client was told.
    """

    method: str = ""
    path: str = ""
    metrics: Metrics | None = None
    started: float = field(default_factory=perf_counter)
    model: str | None = None
    requests: Sequence[AnswerRequest] = ()
    answers: list[AnswerWatch] = field(default_factory=list)
    queued: float | None = None
    response_status: int | None = None
    complete: bool = False
    client_gone: bool = False
    error_code: str | None = None
    _prompts: dict[int, int] = field(default_factory=dict)

    def asked(self, model: str, requests: Sequence[AnswerRequest]) -> None:
        """Note what is asked of which model."""
        self.model, self.requests = model, requests

    def answer(self, request: AnswerRequest) -> AnswerWatch:
        """Begin to follow the answer to one of the requests."""
        metrics = self._model_metrics
        prompt = request.prompt
        # Several answers to one prompt share it.
        if id(prompt) not in self._prompts:
            self._prompts[id(prompt)] = len(prompt.token_ids)
            if metrics is not None:
                metrics.prompt_tokens.inc(len(prompt.token_ids))
        watch = AnswerWatch(self.started, metrics)
        self.answers.append(watch)
        return watch

    def waited(self, seconds: float) -> None:
        """Note that a request to an engine waited in a queue."""
        self.queued = (self.queued or 0.0) + seconds
        metrics = self._model_metrics
        if metrics is not None:
            metrics.queue_time.observe(seconds)

    def told_error(self, body: bytes) -> None:
        """Read the code out of an error that the client was sent."""
        try:
            error = json.loads(body)["error"]
            self.error_code = str(error["code"] or error["type"])
        except (ValueError, KeyError, TypeError):
            self.error_code = f"http_{self.response_status}"

    @property
    def status(self) -> int:
        """What the request ended with; 499 when the client left before it had everything."""
        if self.client_gone:
            return _CLIENT_CLOSED_REQUEST
        return self.response_status or 500

    @property
    def duration(self) -> float:
        """Seconds since its arrival."""
        return perf_counter() - self.started

    @property
    def rejected(self) -> str | None:
        """Why the request was turned away without being served, if it was."""
        refused = 400 <= self.status < 500 or self.status == 503
        return self.error_code if refused and not self.client_gone else None

    @property
    def first_token(self) -> float | None:
        """Seconds to the first token of any answer."""
        return min((watch.first_token for watch in self.answers if watch.first_token is not None), default=None)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts that were sent to an engine."""
        return sum(self._prompts.values())

    @property
    def completion_tokens(self) -> int:
        """Generated tokens, reasoning included."""
        return sum(watch.last.tokens for watch in self.answers if watch.last is not None)

    @property
    def reasoning_tokens(self) -> int:
        """Generated tokens that were reasoning."""
        return sum(watch.last.reasoning_tokens for watch in self.answers if watch.last is not None)

    @property
    def finish_reasons(self) -> list[str]:
        """How the answers ended."""
        return [watch.finish for watch in self.answers if watch.finish is not None]

    @property
    def interventions(self) -> list[str]:
        """What was done to the answers."""
        return [str(each) for watch in self.answers if watch.last is not None for each in watch.last.interventions]

    @property
    def _model_metrics(self) -> ModelMetrics | None:
        return None if self.metrics is None or self.model is None else self.metrics.model(self.model)


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)
"""The record of the request that is being served."""
