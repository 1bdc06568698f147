"""The answers to one request: generated side by side, and counted together."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from trillion_serve.chat.answer import AnswerDelta, AnswerRequest, answer
from trillion_serve.gateway.models import ServedModel
from trillion_serve.gateway.observability.record import RequestRecord, current_record
from trillion_serve.gateway.schema.usage import CompletionTokensDetails, PromptTokensDetails, Usage
from trillion_serve.request_context import request_id

AnswerSource = Callable[[AnswerRequest], AsyncGenerator[AnswerDelta, None]]
"""Gives the deltas of one answer; closing the generator aborts it."""


class Piece(Struct, frozen=True):
    """What a few tokens add to one of the answers."""

    index: int
    delta: AnswerDelta


class Answers:
    """The answers to requests that share nothing but the client's call.

    Whatever the endpoint, the answers pass through here, and are observed here.

    Args:
        model: generates them.
        requests: one for each answer, ids all different; answers to one prompt share it. In the engine each has
            the id that the client's request goes by behind its own.
        source: gives the deltas of one; unless given, ``answer`` with the model's engine and tokenizer.

    Attributes:
        last: the latest delta of each answer that has begun, by its index: its counts are totals.
    """

    def __init__(
        self, model: ServedModel, requests: Sequence[AnswerRequest], source: AnswerSource | None = None
    ) -> None:
        self._requests = [_with_client_id(request) for request in requests]
        self._model = model
        self._source = source or partial(answer, model.engine, model.tokenizer)
        self._record = current_record.get() or RequestRecord()
        self._record.asked(model.name, self._requests)
        self.last: dict[int, AnswerDelta] = {}

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces of all answers as they come. Closing this aborts what is under way."""
        streams = [self._one(index) for index in range(len(self._requests))]
        return streams[0] if len(streams) == 1 else merge(streams, self._model.turns())

    def usage(self) -> Usage:
        """Tokens of the prompts, each counted once, and of all answers."""
        prompts = {id(request.prompt): len(request.prompt.token_ids) for request in self._requests}
        prompt = sum(prompts.values())
        completion = sum(delta.tokens for delta in self.last.values())
        # Later answers to the same prompt find it in the cache: that is not a saving.
        cached: dict[int, int] = {}
        for index, delta in self.last.items():
            prompt_id = id(self._requests[index].prompt)
            cached[prompt_id] = min(cached.get(prompt_id, delta.cached_tokens), delta.cached_tokens)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(cached.values())),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(delta.reasoning_tokens for delta in self.last.values())
            ),
        )

    async def _one(self, index: int) -> AsyncGenerator[Piece, None]:
        request = self._requests[index]
        with self._record.answer(request) as watch:
            async with aclosing(self._source(request)) as deltas:
                async for delta in deltas:
                    watch.saw(delta)
                    self.last[index] = delta
                    yield Piece(index, delta)


def numbered(request: AnswerRequest, count: int) -> list[AnswerRequest]:
    """So many answers to one request: each with an id, and a seed if there is one, of its own."""

    def one(index: int) -> AnswerRequest:
        sampling = request.sampling
        if index and sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=sampling.seed + index)
        return replace(request, id=f"{request.id}-{index}", sampling=sampling)

    return [one(index) for index in range(count)]


def _with_client_id(request: AnswerRequest) -> AnswerRequest:
    known = request_id.get()
    return replace(request, id=f"{request.id}.{known}") if known else request


async def merge(
    streams: Sequence[AsyncGenerator[Piece, None]], turns: AbstractAsyncContextManager[object]
) -> AsyncGenerator[Piece, None]:
    """Items of all streams as they come, each stream inside ``turns``. The first error ends them all, and closing
    this closes them.
    """
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(maxsize=len(streams))

    async def pump(stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with turns, aclosing(stream):
                async for piece in stream:
                    await queue.put(piece)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
