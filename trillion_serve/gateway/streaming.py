"""Answers that stop costing anything when their client goes away.

Starlette's own streaming response cancels its generator again and again once a client has gone, so that the
generator cannot await anything while it cleans up; an engine's abort has to be awaited. These run the work as
a task and cancel it once.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
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
    return Response(answer.model_dump_json(), media_type="application/json")


class EventStream(Response):
    """Server-sent events, one for each item, and ``[DONE]``.

    An error before the first event is raised, so that it becomes a response with its own status; a later one
    becomes an event.

    Args:
        events: the items.
        named: each event bears the name that its item has as ``type``, and the last item is the end.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Event, None], *, named: bool = False) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._named = named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes away."""
        try:
            await while_connected(receive, self._send(send))
        except ClientGone:
            logger.info("%s: the client left a stream", scope["path"])

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_item(send, first)
            try:
                async for event in events:
                    await self._send_item(send, event)
            except Exception as error:
                logger.exception("a stream failed")
                await _send_event(send, msgspec.json.encode(api_error(error).body()))
            else:
                if not self._named:
                    await _send_event(send, b"[DONE]")
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_item(self, send: Send, item: Event) -> None:
        name = f"event: {item.type}\n".encode() if self._named else b""  # type: ignore[union-attr]
        await _send_event(send, _json(item), name)


async def _send_event(send: Send, data: bytes, name: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": b"%bdata: %b\n\n" % (name, data), "more_body": True})


def _json(item: Event) -> bytes:
    return _encode(item) if isinstance(item, msgspec.Struct) else item.model_dump_json().encode()


_encode = msgspec.json.Encoder(enc_hook=lambda model: model.model_dump(mode="json")).encode


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
