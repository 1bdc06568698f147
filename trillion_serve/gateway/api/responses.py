"""``/v1/responses``: answers as the Responses API has them, which can be kept and followed up."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from trillion_serve.chat.answer import AnswerRequest
from trillion_serve.chat.structure import content_plan
from trillion_serve.gateway.answers import Answers
from trillion_serve.gateway.errors import ApiError, api_error
from trillion_serve.gateway.json_route import JsonRoute
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.prepare import prepare_answer
from trillion_serve.gateway.responses.conversation import items_of, messages_of, new_id
from trillion_serve.gateway.responses.store import ResponseStore, StoredResponse
from trillion_serve.gateway.responses.writer import ResponseWriter
from trillion_serve.gateway.schema.response_events import Event
from trillion_serve.gateway.schema.response_items import Item, ItemList
from trillion_serve.gateway.schema.responses_request import ResponsesRequest
from trillion_serve.gateway.schema.responses_response import (
    AllowedChoice,
    DeletedResponse,
    FunctionChoice,
    FunctionTool,
    ReasoningConfig,
    ResponseObject,
    ResponseUsage,
    TextConfig,
    TextFormat,
)
from trillion_serve.gateway.schema.structure import JsonSchemaFormat
from trillion_serve.gateway.schema.tools import AllowedToolsChoice, NamedTool, Tool
from trillion_serve.gateway.streaming import Events, EventStream, LastEvents, answer_or_hang_up

logger = logging.getLogger(__name__)


def router(models: Models, store: ResponseStore | None = None) -> APIRouter:
    """The routes, over a store of their own unless one is given."""
    routes, created = APIRouter(), APIRouter(route_class=JsonRoute)
    kept = ResponseStore() if store is None else store

    @created.post("/v1/responses", response_model=ResponseObject)
    async def create(body: ResponsesRequest, request: Request) -> Response:
        """Answer, as a stream of events if ``stream`` is true."""
        response = await _Response.prepare(models.get(body.model), body, kept, _owner(request))
        if body.stream:
            return EventStream(response.stream(), named=True)
        return await answer_or_hang_up(request, response.whole())

    routes.include_router(created)

    @routes.get("/v1/responses/{response_id}")
    async def retrieve(response_id: str, request: Request, stream: bool = False) -> ResponseObject:
        """A response that is kept."""
        if stream:
            raise ApiError("a response that is kept cannot be streamed again", code="unsupported_field", param="stream")
        return kept.get(_owner(request), response_id).response

    @routes.delete("/v1/responses/{response_id}")
    async def delete(response_id: str, request: Request) -> DeletedResponse:
        """Forget a response. Those that follow it up keep what they were shown."""
        kept.delete(_owner(request), response_id)
        return DeletedResponse(id=response_id)

    @routes.post("/v1/responses/{response_id}/cancel")
    async def cancel(response_id: str, request: Request) -> ResponseObject:
        """Refused: what is kept has ended, and what is under way ends with its connection."""
        kept.get(_owner(request), response_id)
        raise ApiError(
            f"response {response_id!r} has ended; one that is under way is cancelled by closing its connection, as "
            "none runs in the background here",
            code="not_in_background",
            param="response_id",
        )

    @routes.get("/v1/responses/{response_id}/input_items")
    async def input_items(
        response_id: str,
        request: Request,
        order: Literal["asc", "desc"] = "desc",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: str | None = None,
    ) -> ItemList:
        """What the model was shown for a response, but for the instructions; the last first unless told otherwise."""
        context = kept.get(_owner(request), response_id).context
        return _page(context if order == "asc" else context[::-1], limit, after)

    return routes


def _owner(request: Request) -> str | None:
    """The API key that a request came with, by its name."""
    return getattr(request.state, "key_name", None)


def _page(items: tuple[Item, ...], limit: int, after: str | None) -> ItemList:
    ids = [item.id for item in items]
    if after is not None and after not in ids:
        raise ApiError(f"there is no item {after!r} in this response", code="invalid_value", param="after")
    begin = 0 if after is None else ids.index(after) + 1
    page = items[begin : begin + limit]
    return ItemList(
        data=page,
        first_id=page[0].id if page else "",
        last_id=page[-1].id if page else "",
        has_more=len(items) > begin + limit,
    )


class _Response:
    """A request that has been rendered."""

    def __init__(
        self,
        model: ServedModel,
        request: ResponsesRequest,
        answer: AnswerRequest,
        context: tuple[Item, ...],
        store: ResponseStore,
        owner: str | None,
    ) -> None:
        self._answers = Answers(model, [answer])
        self._writer = ResponseWriter(_begun(model, request, answer))
        self._context = context
        self._store = store
        self._owner = owner

    @classmethod
    async def prepare(
        cls, model: ServedModel, request: ResponsesRequest, store: ResponseStore, owner: str | None
    ) -> "_Response":
        """Render a request.

        Raises:
            RenderError: the chat template refuses the messages.
            ApiError: it does not fit in the context, or follows up what is not kept.
        """
        context = (*_history(request, store, owner), *items_of(request.input))
        try:
            answer = await prepare_answer(
                model,
                messages_of(context, request.instructions),
                answer_id=new_id("resp"),
                sampling=request,
                wish=request.wish,
                tools=[tool.model_dump(exclude_none=True) for tool in request.offered_tools],
                tool_use=request.tool_use,
                content=content_plan(request.grammar, request.tool_use),
                template_variables=request.template_variables,
                param="input",
            )
        except ApiError as error:
            if error.param != "max_tokens":
                raise
            raise ApiError(error.message, code=error.code, param="max_output_tokens") from error
        return cls(model, request, answer, context, store, owner)

    async def whole(self) -> ResponseObject:
        """Generate the whole response."""
        async with aclosing(self._answers.pieces()) as pieces:
            async for piece in pieces:
                _exhaust(self._writer.add(piece.delta))
        _exhaust(self._finish())
        return self._writer.response

    async def stream(self) -> AsyncGenerator[Events, None]:
        """Generate the response event by event. Until the engine has taken the request, errors are raised."""
        async with aclosing(self._answers.pieces()) as pieces:
            first = await anext(pieces)
            yield [*self._writer.begin(), *self._writer.add(first.delta)]
            try:
                async for piece in pieces:
                    if events := list(self._writer.add(piece.delta)):
                        yield events
                ending = self._finish()
            except Exception as error:
                logger.exception("response %s failed", self._writer.response.id)
                ending = list(self._writer.fail(api_error(error)))
                self._keep()
        yield LastEvents(ending)

    def _finish(self) -> list[Event]:
        events = list(self._writer.finish(self._answers.last[0], ResponseUsage.of(self._answers.usage())))
        self._keep()
        return events

    def _keep(self) -> None:
        response = self._writer.response
        if response.store:
            self._store.put(self._owner, StoredResponse(response, self._context))


def _history(request: ResponsesRequest, store: ResponseStore, owner: str | None) -> tuple[Item, ...]:
    """What was said before the request."""
    if request.previous_response_id is None:
        return ()
    try:
        return store.get(owner, request.previous_response_id).conversation
    except ApiError as error:
        raise ApiError(error.message, code="previous_response_not_found", param="previous_response_id") from error


def _begun(model: ServedModel, request: ResponsesRequest, answer: AnswerRequest) -> ResponseObject:
    """The response before there is anything in it."""
    reasoning = request.reasoning
    return ResponseObject(
        id=answer.id,
        created_at=int(time.time()),
        status="in_progress",
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        model=model.name,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        reasoning=ReasoningConfig(effort=request.wish.effort, summary=reasoning.summary if reasoning else None),
        store=request.store is not False,
        temperature=answer.sampling.temperature,
        text=TextConfig(format=_form(request)),
        tool_choice=_choice(request),
        tools=[_tool(tool) for tool in request.tools or ()],
        top_p=answer.sampling.top_p,
        user=request.user,
    )


def _form(request: ResponsesRequest) -> TextFormat:
    form = request.text and request.text.format
    if isinstance(form, JsonSchemaFormat):
        named = form.json_schema
        return TextFormat(
            type=form.type,
            name=named.name,
            description=named.description,
            schema_=named.schema_ or {},
            strict=named.strict,
        )
    return TextFormat(type=form.type if form else "text")


def _choice(request: ResponsesRequest) -> Any:
    match request.tool_choice:
        case NamedTool(function=function):
            return FunctionChoice(name=function.name)
        case AllowedToolsChoice(allowed_tools=allowed):
            names = [FunctionChoice(name=tool.function.name) for tool in allowed.tools]
            return AllowedChoice(mode=allowed.mode, tools=names)
    return request.tool_choice or "auto"


def _tool(tool: Tool) -> FunctionTool:
    function = tool.function
    return FunctionTool(
        name=function.name, description=function.description, parameters=function.parameters, strict=function.strict
    )


def _exhaust(events: Any) -> None:
    for _ in events:
        pass
