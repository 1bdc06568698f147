"""Answers that stop costing anything when their client goes away.

Starlette's own streaming response cancels its generator again and again once a client has gone, so that the
generator cannot await anything while it cleans up; an engine's abort has to be awaited. These run the work as
a task and cancel it once.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trillion_serve.gateway.errors import api_error

logger = logging.getLogger(__name__)
T = TypeVar("T")


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


class EventStream(Response):
    """Server-sent events, one for each item, and ``[DONE]``.

    An error before the first event is raised, so that it becomes a response with its own status; a later one
    becomes an event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[BaseModel, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

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
            await _send_event(send, first.model_dump_json())
            try:
                async for event in events:
                    await _send_event(send, event.model_dump_json())
            except Exception as error:
                logger.exception("a stream failed")
                await _send_event(send, json.dumps(api_error(error).body(), ensure_ascii=False))
            else:
                await _send_event(send, "[DONE]")
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, data: str) -> None:
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
