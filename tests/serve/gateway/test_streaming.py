"""Streams at the level of ASGI: what a socket cannot be made to show."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from trillion_serve.gateway.schema.chat_chunk import ChatCompletionChunk, ChunkChoice, Delta
from trillion_serve.gateway.streaming import EventStream


def chunk(text: str) -> ChatCompletionChunk:
    return ChatCompletionChunk("id", 0, "model", [ChunkChoice(0, Delta(content=text), finish_reason=None)])


async def sent(*texts: str) -> list[dict[str, Any]]:
    """What a stream of these texts sends."""

    async def events() -> AsyncGenerator[list[ChatCompletionChunk], None]:
        for text in texts:
            yield [chunk(text)]

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(message)

    try:
        await EventStream(events())({"type": "http", "path": "/"}, receive, send)
    except UnicodeEncodeError:
        messages.append({"type": "raised"})
    return messages


@pytest.mark.parametrize(
    ("texts", "kinds"),
    [
        (["a", "b"], ["http.response.start", *["http.response.body"] * 3]),
        # It can still become a response with a status of its own.
        (["\ud800"], ["raised"]),
        (["a", "\ud800"], ["http.response.start", *["http.response.body"] * 2]),
    ],
)
async def test_a_response_begins_when_its_first_event_is_written(texts: list[str], kinds: list[str]) -> None:
    messages = await sent(*texts)
    assert [message["type"] for message in messages] == kinds


async def test_an_event_that_cannot_be_written_ends_a_stream_with_an_error() -> None:
    *_, last = await sent("a", "\ud800")
    assert b'"code":"internal_error"' in last["body"]
    assert last["more_body"] is False
