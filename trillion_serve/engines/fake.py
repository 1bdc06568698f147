"""A deterministic engine without a model, for tests and load tests. It runs only when it is named."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

from trillion_serve.engines.grammar import check_grammar
from trillion_serve.engines.protocol import EngineInfo, EngineStats, GenerateRequest, TokenDelta, TokenLogprob
from trillion_serve.errors import EngineDeadError, RequestRefusedError

Reply = Callable[[GenerateRequest], Iterable[int]]

_HELD_SECONDS = 0.005


@dataclass(frozen=True)
class Loop:
    """Tokens without an end, such as those of a model that has lost itself in its thoughts."""

    cycle: Sequence[int]
    start: Sequence[int] = ()

    def __iter__(self) -> Iterator[int]:
        """``start``, then ``cycle`` for ever."""
        return chain(self.start, cycle(self.cycle))


class ScriptedReply:
    """A reply that follows from how the prompt ends, as a model's does, so that a request can be continued.

    Args:
        script: what to say after a prompt with such an ending; the ending ``()`` is every prompt's. A prompt that
            ends within one of these texts is continued from there. Where several fit, the longest counts.
    """

    def __init__(self, script: Mapping[tuple[int, ...], Iterable[int]]) -> None:
        self._script = script

    def __call__(self, request: GenerateRequest) -> Iterable[int]:
        """The reply to a request.

        Raises:
            RequestRefusedError: the script has nothing for this prompt.
        """
        prompt = request.prompt_token_ids
        places = [
            (len(ending) + said, said, text)
            for ending, text in self._script.items()
            if (said := _already_said(prompt, ending, text)) is not None
        ]
        if not places:
            raise RequestRefusedError(f"the script has nothing to say after {list(prompt[-8:])}")
        _, said, text = max(places, key=lambda place: place[0])
        return islice(text, said, None)


def _already_said(prompt: tuple[int, ...], ending: tuple[int, ...], text: Iterable[int]) -> int | None:
    """How much of ``text`` the prompt ends with, after ``ending``; None if that does not come before it."""
    told = ending + tuple(islice(text, len(prompt)))
    lengths = range(min(len(told), len(prompt)), len(ending) - 1, -1)
    return next((n - len(ending) for n in lengths if prompt[len(prompt) - n :] == told[:n]), None)


class FakeEngine:
    """Answers with the tokens that ``reply`` gives, at a steady pace.

    Args:
        reply: the whole answer to a request, which may be endless; the first stop token ends it, as its last
            token, and ``max_tokens`` or the end of the context cuts it off. A grammar is the reply's to keep.
        context_length: most tokens in a sequence.
        interval: seconds between two deltas.
        chunk: tokens in a delta.
        first_token_delay: seconds before the first delta, on top of ``interval``.
        dies_after: the engine dies once it has given a request so many tokens.

    Attributes:
        aborted: ids of the requests that ended before their answer did.
    """

    def __init__(
        self,
        reply: Reply,
        *,
        context_length: int = 4096,
        interval: float = 0.0,
        chunk: int = 1,
        first_token_delay: float = 0.0,
        dies_after: int | None = None,
    ) -> None:
        self._reply = reply
        self._interval = interval
        self._chunk = chunk
        self._first_token_delay = first_token_delay
        self._dies_after = dies_after
        self._alive = True
        self._held = False
        self._seen: set[tuple[int, ...]] = set()
        self._info = EngineInfo(
            engine="fake",
            model="fake",
            context_length=context_length,
            kv_capacity_tokens=context_length * 16,
            kv_bytes=None,
            dtype="none",
        )
        self._under_way: dict[str, int] = {}
        self.aborted: list[str] = []

    @property
    def running(self) -> set[str]:
        """The ids of the requests under way."""
        return set(self._under_way)

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
        check_grammar(request.sampling)
        cached = len(request.prompt_token_ids) - 1 if request.prompt_token_ids in self._seen else 0
        self._seen.add(request.prompt_token_ids)
        tokens, stopped = self._answer(request)
        self._under_way[request.request_id] = len(request.prompt_token_ids)
        try:
            for start in range(0, max(len(tokens), 1), self._chunk):
                await self._pause(request.request_id, start)
                if request.request_id not in self._under_way:
                    return
                new = tuple(tokens[start : start + self._chunk])
                last = start + self._chunk >= len(tokens)
                if last:
                    del self._under_way[request.request_id]
                else:
                    self._under_way[request.request_id] += len(new)
                yield TokenDelta(
                    token_ids=new,
                    logprobs=self._logprobs(new, request.sampling.top_logprobs),
                    finish_reason=("stop" if stopped else "length") if last else None,
                    prompt_tokens=len(request.prompt_token_ids),
                    cached_tokens=cached,
                )
        finally:
            if request.request_id in self._under_way:
                await self.abort(request.request_id)

    def _answer(self, request: GenerateRequest) -> tuple[list[int], bool]:
        """The reply as far as the request takes it, and whether that is its end."""
        most = min(request.sampling.max_tokens, self._info.context_length - len(request.prompt_token_ids))
        tokens = list(islice(self._reply(request), most + 1))
        end = next((i for i, token in enumerate(tokens) if token in request.sampling.stop_token_ids), len(tokens))
        tokens = tokens[: end + 1]
        return tokens[:most], len(tokens) <= most

    async def _pause(self, request_id: str, sent: int) -> None:
        """Wait for the moment of the next delta."""
        await asyncio.sleep(self._interval + (0 if sent else self._first_token_delay))
        # Whoever releases it may be in another thread, where no event of asyncio's can be set.
        while self._held and self._alive and request_id in self._under_way:  # noqa: ASYNC110
            await asyncio.sleep(_HELD_SECONDS)
        if self._dies_after is not None and sent >= self._dies_after:
            self.kill()
        self._check_alive()

    async def abort(self, request_id: str) -> None:
        """Stop a request."""
        if self._under_way.pop(request_id, None) is not None:
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

    async def stats(self) -> EngineStats:
        """The tokens of the requests under way, as a share of the cache; nothing ever waits here."""
        self._check_alive()
        tokens = sum(self._under_way.values())
        return EngineStats(tokens / self._info.kv_capacity_tokens, running=len(self._under_way), waiting=0)

    async def close(self) -> None:
        """Stop."""
        self._alive = False

    def hang(self) -> None:
        """Give no token to anyone until ``release``."""
        self._held = True

    def release(self) -> None:
        """Go on after ``hang``."""
        self._held = False

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
