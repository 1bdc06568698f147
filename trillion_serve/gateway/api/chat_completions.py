"""``/v1/chat/completions``: a chat request from its validated body to its answer."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from trillion_serve.chat.answer import AnswerDelta, AnswerRequest
from trillion_serve.chat.message import MessageDelta
from trillion_serve.chat.structure import content_plan
from trillion_serve.engines.protocol import TokenLogprob
from trillion_serve.gateway.answers import Answers, numbered
from trillion_serve.gateway.ids import new_id
from trillion_serve.gateway.json_route import JsonRoute
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.prepare import prepare_answer
from trillion_serve.gateway.schema.chat_chunk import ChatCompletionChunk, ChunkChoice, Delta, delta_of
from trillion_serve.gateway.schema.chat_request import ChatCompletionRequest
from trillion_serve.gateway.schema.chat_response import (
    AssistantMessage,
    ChatCompletion,
    Choice,
    ChoiceLogprobs,
    choice_logprobs,
    text_fields,
    whole_tool_calls,
)
from trillion_serve.gateway.schema.usage import Usage
from trillion_serve.gateway.streaming import Events, EventStream, LastEvents, answer_or_hang_up


def router(models: Models) -> APIRouter:
    """The route."""
    routes = APIRouter(route_class=JsonRoute)

    @routes.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation, as a stream of events if ``stream`` is true."""
        completion = await _ChatCompletion.prepare(models.get(body.model), body)
        if body.stream:
            return EventStream(completion.stream())
        return await answer_or_hang_up(request, completion.whole())

    return routes


class _ChatCompletion:
    """A request that has been rendered."""

    def __init__(self, model: ServedModel, request: ChatCompletionRequest, answer: AnswerRequest) -> None:
        self._model = model
        self._request = request
        self._id = answer.id
        self._created = int(time.time())
        self._answers = Answers(model, numbered(answer, request.n or 1))

    @classmethod
    async def prepare(cls, model: ServedModel, request: ChatCompletionRequest) -> "_ChatCompletion":
        """Render a request.

        Raises:
            RenderError: the chat template refuses the messages.
            ApiError: it does not fit in the context.
        """
        answer = await prepare_answer(
            model,
            [message.model_dump(exclude_none=True) for message in request.messages],
            answer_id=f"chatcmpl-{new_id()}",
            sampling=request,
            wish=request.wish,
            tools=[tool.model_dump(exclude_none=True) for tool in request.offered_tools],
            tool_use=request.tool_use,
            content=content_plan(request.grammar, request.tool_use),
            template_variables=request.template_variables,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        return cls(model, request, answer)

    async def whole(self) -> ChatCompletion:
        """Generate whole answers."""
        count = self._request.n or 1
        deltas: list[list[MessageDelta]] = [[] for _ in range(count)]
        logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
        async with aclosing(self._answers.pieces()) as pieces:
            async for piece in pieces:
                deltas[piece.index].append(piece.delta.message)
                logprobs[piece.index] += piece.delta.logprobs
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model.name,
            choices=[self._choice(index, deltas[index], logprobs[index]) for index in range(count)],
            usage=self._answers.usage(),
        )

    async def stream(self) -> AsyncGenerator[Events, None]:
        """Generate answers, the chunks of a few tokens at a time."""
        begun: set[int] = set()
        running = self._request.n or 1
        ending = LastEvents()
        async with aclosing(self._answers.pieces()) as pieces:
            async for piece in pieces:
                choices = [self._chunk_choice(piece.index, delta) for delta in _one_field_each(piece.delta)]
                if piece.index not in begun:
                    begun.add(piece.index)
                    opening = Delta(role="assistant", content="")
                    choices.insert(0, ChunkChoice(piece.index, opening, finish_reason=None))
                chunks = [self._chunk([choice]) for choice in choices]
                running -= piece.delta.finish_reason is not None
                if not running:
                    ending.extend(chunks)
                elif chunks:
                    yield chunks
        if self._request.stream_options and self._request.stream_options.include_usage:
            ending.append(self._chunk([], self._answers.usage()))
        yield ending

    def _chunk_choice(self, index: int, delta: AnswerDelta) -> ChunkChoice:
        return ChunkChoice(
            index=index,
            delta=delta_of(delta.message),
            finish_reason=delta.finish_reason,
            logprobs=self._logprobs(delta.logprobs) or UNSET,
            interventions=(delta.interventions or UNSET) if delta.finish_reason else UNSET,
        )

    def _choice(self, index: int, deltas: Sequence[MessageDelta], logprobs: Sequence[TokenLogprob]) -> Choice:
        last = self._answers.last[index]
        assert last.finish_reason is not None
        message = MessageDelta(
            reasoning="".join(delta.reasoning for delta in deltas), content="".join(delta.content for delta in deltas)
        )
        calls = whole_tool_calls([call for delta in deltas for call in delta.tool_calls])
        return Choice(
            index=index,
            message=AssistantMessage(
                **{"content": None if calls else "", **text_fields(message)}, tool_calls=calls or None
            ),
            finish_reason=last.finish_reason,
            logprobs=self._logprobs(logprobs),
            interventions=list(last.interventions) or None,
        )

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | UnsetType = UNSET) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model.name, choices=choices, usage=usage
        )

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> ChoiceLogprobs | None:
        return choice_logprobs(self._model.tokenizer, list(entries)) if self._request.logprobs else None


def _one_field_each(delta: AnswerDelta) -> list[AnswerDelta]:
    """The delta, if there is anything in it; cut in two if there is reasoning in it and more, as clients look
    for the one or the other."""
    if not (delta.message or delta.logprobs or delta.finish_reason):
        return []
    message = delta.message
    if not message.reasoning or not (message.content or message.tool_calls):
        return [delta]
    rest = MessageDelta("", message.content, message.tool_calls)
    return [AnswerDelta(MessageDelta(message.reasoning)), replace(delta, message=rest)]
