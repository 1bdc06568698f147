"""A deterministic engine without a model, for tests and load tests. It runs only when it is named."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence

from trillion_serve.engines.protocol import EngineInfo, GenerateRequest, TokenDelta, TokenLogprob
from trillion_serve.errors import EngineDeadError, RequestRefusedError

Reply = Callable[[GenerateRequest], Sequence[int]]


class FakeEngine:
    """Answers with the tokens that ``reply`` gives, at a steady pace.

    Args:
        reply: the whole answer to a request; stop tokens and ``max_tokens`` cut it as they cut a model's.
        context_length: most tokens in a sequence.
        interval: seconds between two deltas.
        chunk: tokens in a delta.

    Attributes:
        running: ids of the requests under way.
        aborted: ids of the requests that ended before their answer did.
    """

    def __init__(self, reply: Reply, *, context_length: int = 4096, interval: float = 0.0, chunk: int = 1) -> None:
        self._reply = reply
        self._interval = interval
        self._chunk = chunk
        self._alive = True
        self._seen: set[tuple[int, ...]] = set()
        self._info = EngineInfo(
            engine="fake",
            model="fake",
            context_length=context_length,
            kv_capacity_tokens=context_length * 16,
            kv_bytes=None,
            dtype="none",
        )
        self.running: set[str] = set()
        self.aborted: list[str] = []

    @property
    def info(self) -> EngineInfo:
        """What runs here."""
        return self._info

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the reply, ``chunk`` tokens at a time."""
        self._check_alive()
        if len(request.prompt_token_ids) >= self._info.context_length:
            raise RequestRefusedError(
                f"the prompt has {len(request.prompt_token_ids)} tokens, the context {self._info.context_length}"
            )
        cached = len(request.prompt_token_ids) - 1 if request.prompt_token_ids in self._seen else 0
        self._seen.add(request.prompt_token_ids)
        tokens = list(self._reply(request))
        ends = [i for i, token in enumerate(tokens) if token in request.sampling.stop_token_ids]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        stopped = len(tokens) <= request.sampling.max_tokens
        tokens = tokens[: request.sampling.max_tokens]
        self.running.add(request.request_id)
        try:
            for start in range(0, max(len(tokens), 1), self._chunk):
                await asyncio.sleep(self._interval)
                self._check_alive()
                if request.request_id not in self.running:
                    return
                new = tuple(tokens[start : start + self._chunk])
                last = start + self._chunk >= len(tokens)
                if last:
                    self.running.discard(request.request_id)
                yield TokenDelta(
                    token_ids=new,
                    logprobs=self._logprobs(new, request.sampling.top_logprobs),
                    finish_reason=("stop" if stopped else "length") if last else None,
                    prompt_tokens=len(request.prompt_token_ids),
                    cached_tokens=cached,
                )
        finally:
            if request.request_id in self.running:
                await self.abort(request.request_id)

    async def abort(self, request_id: str) -> None:
        """Stop a request."""
        if request_id in self.running:
            self.running.discard(request_id)
            self.aborted.append(request_id)

    async def score(self, token_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenLogprob]:
        """Give every token the probability that this engine gives its own."""
        self._check_alive()
        if not token_ids:
            raise RequestRefusedError("there is nothing to score: the sequence is empty")
        return list(self._logprobs(tuple(token_ids[1:]), top_logprobs) or ())

    async def health(self) -> None:
        """Return while the engine has not been killed or closed."""
        self._check_alive()

    async def close(self) -> None:
        """Stop."""
        self._alive = False

    def kill(self) -> None:
        """Die, as an engine whose process was killed does: requests under way fail."""
        self._alive = False

    def _check_alive(self) -> None:
        if not self._alive:
            raise EngineDeadError("the fake engine has stopped; start the server again")

    def _logprobs(self, tokens: tuple[int, ...], top: int | None) -> tuple[TokenLogprob, ...] | None:
        if top is None:
            return None
        return tuple(
            TokenLogprob(
                token_id=token,
                logprob=math.log(0.5),
                top=tuple((token + k, math.log(0.5) - k) for k in range(top)),
            )
            for token in tokens
        )
