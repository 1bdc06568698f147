"""``/v1/completions``: texts continued as they are, and the probabilities of their tokens."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import accumulate, chain

from fastapi import APIRouter, Request, Response

from trillion_serve.chat.answer import AnswerDelta, AnswerRequest
from trillion_serve.chat.continuation import RawText, continuation, raw_prompt
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import SamplingParams, TokenLogprob
from trillion_serve.gateway.answers import Answers, numbered
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.ids import new_id
from trillion_serve.gateway.json_route import JsonRoute
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.raw_prompts import check_token_ids, encode_raw
from trillion_serve.gateway.sampling import check_ids, sampling_of
from trillion_serve.gateway.schema.completion_request import CompletionRequest
from trillion_serve.gateway.schema.completion_response import (
    Completion,
    CompletionChoice,
    CompletionFinish,
    CompletionLogprobs,
)
from trillion_serve.gateway.schema.usage import Usage
from trillion_serve.gateway.streaming import Events, EventStream, LastEvents, answer_or_hang_up

_DEFAULT_MAX_TOKENS = 16
_LEAST_LOGPROB = -9999.0
"""JSON has no infinity; this is how the OpenAI API writes it."""


def router(models: Models) -> APIRouter:
    """The route."""
    routes = APIRouter(route_class=JsonRoute)

    @routes.post("/v1/completions", response_model=Completion)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue prompts, as a stream of events if ``stream`` is true.

        Special tokens in a prompt count as such, and the tokens of a think block are text.
        """
        completion = await _Completions.prepare(models.get(body.model), body)
        if body.stream:
            return EventStream(completion.stream())
        return await answer_or_hang_up(request, completion.whole())

    return routes


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt as it goes to the engine, and as it is given back: its text, and where in it each token begins."""

    token_ids: tuple[int, ...]
    text: str = ""
    offsets: tuple[int, ...] = ()


class _Completions:
    """A request whose prompts are token ids."""

    def __init__(
        self, model: ServedModel, request: CompletionRequest, prompts: Sequence[_Prompt], sampling: list[SamplingParams]
    ) -> None:
        self._model = model
        self._request = request
        self._prompts = prompts
        self._id = f"cmpl-{new_id()}"
        self._created = int(time.time())
        self._count = request.n or 1
        self._generates = request.max_tokens != 0
        stop = tuple(request.stop or ())
        requests = [
            numbered(
                AnswerRequest(f"{self._id}-{place}", raw_prompt(prompt.token_ids), params, stop=stop),
                self._count,
            )
            for place, (prompt, params) in enumerate(zip(prompts, sampling, strict=True))
        ]
        self._answers = Answers(model, list(chain.from_iterable(requests)), self._continue)
        self._hidden = _hidden_ids(model.tokenizer, request)
        self._writers = [
            _LogprobsWriter(model.tokenizer, request, prompts[index // self._count], self._hidden)
            for index in (self._indices if request.logprobs is not None else ())
        ]

    @classmethod
    async def prepare(cls, model: ServedModel, request: CompletionRequest) -> "_Completions":
        """Tokenise the prompts of a request.

        Raises:
            ApiError: a prompt is empty, has an unknown token, or does not fit in the context.
        """
        # Tokenising long prompts would hold up every other request.
        prompts = await asyncio.to_thread(_read_prompts, model.tokenizer, request)
        return cls(model, request, prompts, [_sampling(model, request, len(prompt.token_ids)) for prompt in prompts])

    async def whole(self) -> Completion:
        """Generate whole texts."""
        texts: list[list[str]] = [[] for _ in self._indices]
        logprobs: list[list[CompletionLogprobs]] = [[] for _ in self._indices]
        finish: dict[int, CompletionFinish | None] = {}
        async with aclosing(self._parts()) as parts:
            async for part in parts:
                texts[part.index].append(part.text)
                logprobs[part.index] += [part.logprobs] if part.logprobs else []
                finish[part.index] = part.finish_reason
        choices = [
            CompletionChoice(
                index=index,
                text="".join(texts[index]),
                logprobs=_joined(logprobs[index]) if self._request.logprobs is not None else None,
                finish_reason=finish[index],
            )
            for index in self._indices
        ]
        return self._completion(choices, self._answers.usage())

    async def stream(self) -> AsyncGenerator[Events, None]:
        """Generate texts chunk by chunk."""
        async with aclosing(self._parts()) as parts:
            async for part in parts:
                if part.text or part.logprobs or part.finish_reason:
                    yield [self._completion([part])]
        ending = LastEvents()
        if self._request.stream_options and self._request.stream_options.include_usage:
            ending.append(self._completion([], self._answers.usage()))
        yield ending

    @property
    def _indices(self) -> range:
        return range(len(self._prompts) * self._count)

    async def _parts(self) -> AsyncGenerator[CompletionChoice, None]:
        """The parts of all texts: first the prompts, if they are given back, then what continues them."""
        if self._request.echo:
            scores = await self._score()
            for index in self._indices:
                place = index // self._count
                yield CompletionChoice(
                    index=index,
                    text=self._prompts[place].text,
                    logprobs=self._writers[index].prompt(scores[place]) if scores else None,
                    finish_reason=None if self._generates else "length",
                )
        if not self._generates:
            return
        async with aclosing(self._answers.pieces()) as pieces:
            async for piece in pieces:
                yield self._part(piece.index, piece.delta)

    def _part(self, index: int, delta: AnswerDelta) -> CompletionChoice:
        assert delta.finish_reason != "tool_calls", "a continuation calls no tools"
        return CompletionChoice(
            index=index,
            text=delta.message.content,
            logprobs=self._writers[index].generated(delta.logprobs) if delta.logprobs else None,
            finish_reason=delta.finish_reason,
        )

    async def _score(self) -> list[list[TokenLogprob]]:
        """The log-probabilities of the prompts' own tokens, if they are asked for."""
        if self._request.logprobs is None:
            return []
        top, turns = self._request.logprobs, self._model.turns()

        async def score(prompt: _Prompt) -> list[TokenLogprob]:
            async with turns:
                return await self._model.engine.score(prompt.token_ids, top)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(score(prompt)) for prompt in self._prompts]
        except* Exception as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _continue(self, request: AnswerRequest) -> AsyncGenerator[AnswerDelta, None]:
        return continuation(self._model.engine, self._model.tokenizer, request, hidden_ids=self._hidden)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model.name, choices=choices, usage=usage)


class _LogprobsWriter:
    """Writes the log-probabilities of one text, token by token."""

    def __init__(
        self, tokenizer: ChatTokenizer, request: CompletionRequest, prompt: _Prompt, hidden_ids: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._by_id = bool(request.return_tokens_as_token_ids)
        self._prompt = prompt
        hidden = hidden_ids.union(tokenizer.end_ids, request.stop_token_ids or ())
        self._text = RawText(tokenizer, prompt.token_ids, hidden)
        self._offset = len(prompt.text)

    def prompt(self, scored: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """The prompt's, which has no probability for its first token."""
        return CompletionLogprobs(
            tokens=[self._name(token_id) for token_id in self._prompt.token_ids],
            token_logprobs=[None, *(_finite(entry.logprob) for entry in scored)],
            top_logprobs=[None, *(self._top(entry) for entry in scored)],
            text_offset=list(self._prompt.offsets),
        )

    def generated(self, entries: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """Those of the next tokens."""
        return CompletionLogprobs(
            tokens=[self._name(entry.token_id) for entry in entries],
            token_logprobs=[_finite(entry.logprob) for entry in entries],
            top_logprobs=[self._top(entry) for entry in entries],
            text_offset=[self._next(entry.token_id) for entry in entries],
        )

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """Alternatives by their text. Of several with the same text, such as parts of characters, the best stays."""
        top: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(self._name(token_id), _finite(logprob))
        return top

    def _name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._by_id else self._tokenizer.token_text(token_id)

    def _next(self, token_id: int) -> int:
        """Where this token begins."""
        offset = self._offset
        self._offset += len(self._text.decode(token_id))
        return offset


def _read_prompts(tokenizer: ChatTokenizer, request: CompletionRequest) -> list[_Prompt]:
    check_ids(tokenizer, request)
    prompts = []
    for place, prompt in enumerate(request.prompts):
        param = "prompt" if len(request.prompts) == 1 else f"prompt[{place}]"
        if isinstance(prompt, str):
            read = _read_text(tokenizer, prompt, request)
        else:
            check_token_ids(tokenizer, prompt, param)
            read = _read_ids(tokenizer, prompt, request)
        if not read.token_ids:
            raise ApiError(f"{param} is empty; give at least one token", code="invalid_value", param=param)
        prompts.append(read)
    return prompts


def _read_text(tokenizer: ChatTokenizer, text: str, request: CompletionRequest) -> _Prompt:
    tokens = encode_raw(tokenizer, text, request.add_special_tokens)
    if not request.echo:
        return _Prompt(tuple(token.id for token in tokens))
    return _Prompt(tuple(token.id for token in tokens), text, tuple(token.begin for token in tokens))


def _read_ids(tokenizer: ChatTokenizer, token_ids: Sequence[int], request: CompletionRequest) -> _Prompt:
    if not request.echo:
        return _Prompt(tuple(token_ids))
    reader = RawText(tokenizer)
    pieces = [reader.decode(token_id) for token_id in token_ids]
    offsets = accumulate((len(piece) for piece in pieces[:-1]), initial=0)
    return _Prompt(tuple(token_ids), "".join(pieces) + reader.flush(), tuple(offsets))


def _hidden_ids(tokenizer: ChatTokenizer, request: CompletionRequest) -> frozenset[int]:
    """Tokens that do not show: special ones, but for the tags of a think block unless these are to go as well."""
    if request.skip_special_tokens is None:
        return tokenizer.hidden_ids
    special = (id_ for id_, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special)
    return frozenset(special) if request.skip_special_tokens else frozenset()


def _sampling(model: ServedModel, request: CompletionRequest, prompt_tokens: int) -> SamplingParams:
    sampling = sampling_of(
        request,
        model.sampling,
        model.engine.info,
        prompt_tokens=prompt_tokens,
        end_ids=model.tokenizer.end_ids,
        top_logprobs=request.logprobs,
        param="prompt",
    )
    # Without a wish of the client's, ``sampling_of`` gives all that there is room for.
    most = sampling.max_tokens if request.max_tokens else min(_DEFAULT_MAX_TOKENS, sampling.max_tokens)
    return replace(sampling, max_tokens=most)


def _joined(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[logprob for part in parts for logprob in part.token_logprobs],
        top_logprobs=[top for part in parts for top in part.top_logprobs],
        text_offset=[offset for part in parts for offset in part.text_offset],
    )


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
