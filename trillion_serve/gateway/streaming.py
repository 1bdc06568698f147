"""Answers that stop costing anything when their client goes away.

Starlette's own streaming response cancels its generator again and again once a client has gone, so that the
generator cannot await anything while it cleans up; an engine's abort has to be awaited. These run the work as
a task and cancel it once.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trillion_serve.gateway.errors import api_error

logger = logging.getLogger(__name__)
T = TypeVar("T")

Event = BaseModel | msgspec.Struct
"""What an event stream is made of; a struct may have models among its fields."""

Events = Sequence[Event]
"""Those that come together, and are sent together."""

_CLIENT_CLOSED_REQUEST = 499


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


async def while_connected(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """Run to the end, or cancel the work as soon as the client is gone.

    Raises:
        ClientGone: it is.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def answer_or_hang_up(request: Request, work: Coroutine[None, None, BaseModel]) -> Response:
    """The result as JSON, unless the client leaves before it is there: then the work is cancelled."""
    try:
        answer = await while_connected(request.receive, work)
    except ClientGone:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    return json_response(answer)


def json_response(answer: BaseModel) -> Response:
    """A response whose body is an object's JSON."""
    return Response(answer.model_dump_json(), media_type="application/json")


class LastEvents(list[Event]):
    """The events that end a stream, which is closed along with them; perhaps none."""


class EventStream(Response):
    """Server-sent events, and ``[DONE]``. Events that come together are sent together.

    An error before the first event is raised, so that it becomes a response with its own status; a later one
    becomes an event.

    Args:
        events: the items, as many at a time as there are; the last are ``LastEvents``.
        named: each event bears the name that its item has as ``type``, and the last item is the end.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Events, None], *, named: bool = False) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._written = _named_event if named else _event
        self._end = b"" if named else b"data: [DONE]\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes away."""
        try:
            await while_connected(receive, self._send(send))
        except ClientGone:
            logger.info("%s: the client left a stream", scope["path"])

    async def _send(self, send: Send) -> None:
        end = self._end
        async with aclosing(self._events) as events:
            batch = await anext(events)
            body = self._body(batch)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                while not isinstance(batch, LastEvents):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    body = b""
                    batch = await anext(events)
                    body = self._body(batch)
            except Exception as error:
                logger.exception("a stream failed")
                end = b"data: %b\n\n" % msgspec.json.encode(api_error(error).body())
            await send({"type": "http.response.body", "body": body + end, "more_body": False})

    def _body(self, events: Events) -> bytes:
        return b"".join(map(self._written, events))


def _event(item: Event) -> bytes:
    return b"data: %b\n\n" % _json(item)


def _named_event(item: Event) -> bytes:
    return b"event: %b\n%b" % (item.type.encode(), _event(item))  # type: ignore[union-attr]


def _json(item: Event) -> bytes:
    return _encode(item) if isinstance(item, msgspec.Struct) else item.model_dump_json().encode()


_encode = msgspec.json.Encoder(enc_hook=lambda model: model.model_dump(mode="json")).encode


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
