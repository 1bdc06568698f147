"""An engine that counts the tokens of whoever is calling."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from trillion_serve.engines.protocol import Engine, EngineInfo, EngineStats, GenerateRequest, TokenDelta, TokenLogprob
from trillion_serve.gateway.limits.call import Call, current_call


class MeteredEngine:
    """Passes everything on, and tells the current call what it costs.

    Attributes:
        inner: the engine.
    """

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    @property
    def info(self) -> EngineInfo:
        """What runs here."""
        return self.inner.info

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Continue the prompt.

        Raises:
            ApiError: the caller may not ask for so much.
        """
        call = current_call()
        if call is None or not call.counts_tokens:
            return self.inner.generate(request)
        return self._counted(call, request)

    async def abort(self, request_id: str) -> None:
        """Stop a request."""
        await self.inner.abort(request_id)

    async def score(self, token_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of ``token_ids[1:]``.

        Raises:
            ApiError: the caller may not ask for so much.
        """
        call = current_call()
        if call is not None and call.counts_tokens:
            await call.read(tuple(token_ids))
        return await self.inner.score(token_ids, top_logprobs)

    async def health(self) -> None:
        """Return when the engine can take requests."""
        await self.inner.health()

    async def stats(self) -> EngineStats:
        """What it is doing."""
        return await self.inner.stats()

    async def close(self) -> None:
        """Stop the engine."""
        await self.inner.close()

    async def _counted(self, call: Call, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        # An answer that is continued is several requests, numbered behind its own id.
        answer_id = request.request_id.rpartition("-")[0]
        await call.read(request.prompt_token_ids, answer_id)
        written = 0
        try:
            async with aclosing(self.inner.generate(request)) as deltas:
                async for delta in deltas:
                    written += len(delta.token_ids)
                    yield delta
        finally:
            await call.wrote(written, answer_id)
