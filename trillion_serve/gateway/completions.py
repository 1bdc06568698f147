"""A chat request from its validated body to its answer: render, generate, decode, and count."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from uuid import uuid4

from trillion_serve.chat.decode import ChatDecoder, MessageDelta
from trillion_serve.chat.render import Prompt, render
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import (
    Engine,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenLogprob,
)
from trillion_serve.errors import EngineError
from trillion_serve.gateway.responses import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionTokensDetails,
    Delta,
    PromptTokensDetails,
    Usage,
    choice_logprobs,
    text_fields,
)
from trillion_serve.gateway.schema import ChatCompletionRequest
from trillion_serve.gateway.settings import GatewaySettings, sampling_of


@dataclass(frozen=True)
class Piece:
    """What a few tokens add to one of a job's answers. Counts are totals of that answer so far."""

    index: int
    delta: MessageDelta
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    tokens: int
    reasoning_tokens: int
    cached_tokens: int


@dataclass
class Job:
    """A request that has been rendered, and what its answers have used so far."""

    request: ChatCompletionRequest
    prompt: Prompt
    sampling: SamplingParams
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    last: dict[int, Piece] = field(default_factory=dict)

    @property
    def answers(self) -> int:
        """How many answers were asked for."""
        return self.request.n or 1

    def usage(self) -> Usage:
        """Tokens of the prompt, once, and of all answers."""
        prompt = len(self.prompt.token_ids)
        completion = sum(piece.tokens for piece in self.last.values())
        # The later answers of a request find the prompt of the first in the cache: that is not a saving.
        cached = min((piece.cached_tokens for piece in self.last.values()), default=0)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(piece.reasoning_tokens for piece in self.last.values())
            ),
        )


class ChatCompletions:
    """Answers chat requests with one engine and one tokenizer."""

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer, settings: GatewaySettings) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._settings = settings

    async def prepare(self, request: ChatCompletionRequest) -> Job:
        """Render a request.

        Raises:
            RenderError: the chat template refuses the messages.
            ApiError: it does not fit in the context.
        """
        tools = [] if request.tool_choice == "none" else request.tools or []
        prompt = await asyncio.to_thread(
            render,
            self._tokenizer,
            [message.model_dump(exclude_none=True) for message in request.messages],
            tools=[tool.model_dump(exclude_none=True) for tool in tools],
            thinking=request.thinks,
            template_variables=request.chat_template_kwargs.model_extra,
        )
        sampling = sampling_of(
            request,
            self._settings.sampling,
            self._engine.info,
            prompt_tokens=len(prompt.token_ids),
            end_ids=self._tokenizer.end_ids,
        )
        return Job(request, prompt, sampling)

    async def complete(self, job: Job) -> ChatCompletion:
        """Generate whole answers."""
        deltas = [MessageDelta() for _ in range(job.answers)]
        logprobs: list[list[TokenLogprob]] = [[] for _ in range(job.answers)]
        async with aclosing(self._pieces(job)) as pieces:
            async for piece in pieces:
                deltas[piece.index] += piece.delta
                logprobs[piece.index] += piece.logprobs
        choices = []
        for index, delta in enumerate(deltas):
            finish_reason = job.last[index].finish_reason
            assert finish_reason is not None
            choices.append(
                Choice(
                    index=index,
                    message=AssistantMessage(**{"content": "", **text_fields(delta)}),
                    finish_reason=finish_reason,
                    logprobs=self._logprobs(job, logprobs[index]),
                )
            )
        return ChatCompletion(
            id=job.id,
            created=job.created,
            model=self._settings.model_name,
            choices=choices,
            usage=job.usage(),
        )

    async def stream(self, job: Job) -> AsyncGenerator[ChatCompletionChunk, None]:
        """Generate answers chunk by chunk."""

        def chunk(choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
            return ChatCompletionChunk(
                id=job.id, created=job.created, model=self._settings.model_name, choices=choices, usage=usage
            )

        begun: set[int] = set()
        async with aclosing(self._pieces(job)) as pieces:
            async for piece in pieces:
                if piece.index not in begun:
                    begun.add(piece.index)
                    opening = Delta(role="assistant", content="")
                    yield chunk([ChunkChoice(index=piece.index, delta=opening, finish_reason=None)])
                if piece.delta or piece.logprobs or piece.finish_reason:
                    yield chunk(
                        [
                            ChunkChoice(
                                index=piece.index,
                                delta=Delta(**text_fields(piece.delta)),
                                finish_reason=piece.finish_reason,
                                logprobs=self._logprobs(job, piece.logprobs),
                            )
                        ]
                    )
        if job.request.stream_options and job.request.stream_options.include_usage:
            yield chunk([], job.usage())

    def _logprobs(self, job: Job, entries: Sequence[TokenLogprob]) -> ChoiceLogprobs | None:
        return choice_logprobs(self._tokenizer, list(entries)) if job.request.logprobs else None

    async def _pieces(self, job: Job) -> AsyncGenerator[Piece, None]:
        """The pieces of all answers as they come, and the job's counts kept up."""
        async with aclosing(merge([self._answer(job, index) for index in range(job.answers)])) as pieces:
            async for piece in pieces:
                job.last[piece.index] = piece
                yield piece

    async def _answer(self, job: Job, index: int) -> AsyncGenerator[Piece, None]:
        """One answer: an engine request of its own, with a seed of its own."""
        seed = None if job.sampling.seed is None else job.sampling.seed + index
        request = GenerateRequest(f"{job.id}-{index}", job.prompt.token_ids, replace(job.sampling, seed=seed))
        decoder = ChatDecoder(self._tokenizer, job.prompt, job.request.stop or ())
        async with aclosing(self._engine.generate(request)) as deltas:
            async for delta in deltas:
                before = decoder.tokens
                message = decoder.decode(delta.token_ids)
                finish_reason = delta.finish_reason
                if finish_reason:
                    message += decoder.flush()
                if decoder.stopped:
                    finish_reason = "stop"
                entries = (delta.logprobs or ())[: decoder.tokens - before]
                ends = request.sampling.stop_token_ids
                yield Piece(
                    index=index,
                    delta=message,
                    logprobs=tuple(entry for entry in entries if entry.token_id not in ends),
                    finish_reason=finish_reason,
                    tokens=decoder.tokens,
                    reasoning_tokens=decoder.reasoning_tokens,
                    cached_tokens=delta.cached_tokens,
                )
                if finish_reason:
                    return
        raise EngineError(f"the engine ended request {request.request_id} before its answer was complete")


async def merge(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """Items of all streams as they come. The first error ends them all, and closing this closes them."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield piece
        return
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(maxsize=len(streams))

    async def pump(stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
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
