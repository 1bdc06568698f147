"""What takes long leaves the event loop to other requests: a heartbeat on the loop goes on while it lasts."""

import asyncio
from typing import Any

import httpx
import pytest

from support.running_gateway import MODEL
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.gateway import json_route
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.schema import grammar_check
from trillion_serve.gateway.security import bodies

LEAF = {"type": "object", "properties": {"이름": {"type": "string", "maxLength": 20}}, "additionalProperties": False}
SCHEMA = {"type": "object", "properties": {f"속성 {index}": LEAF for index in range(300)}}
UNENFORCEABLE = {**SCHEMA, "uniqueItems": True}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "표?"}], "max_tokens": 8}
TOOL = {"type": "function", "function": {"name": "f", "parameters": UNENFORCEABLE}}
NAMED = {"name": "large", "schema": SCHEMA}


async def beats_during(tokenizer: ChatTokenizer, path: str, body: dict[str, Any]) -> tuple[int, int]:
    """The status of a request's answer, and how often the loop came round until the answer was there."""
    engine = FakeEngine(lambda request: [*tokenizer.encode("{}"), *tokenizer.end_ids], context_length=100_000)
    app = create_app(Models([ServedModel(MODEL, engine, tokenizer)]))
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        request = client.build_request("POST", path, json={"model": MODEL, **body})
        heart = asyncio.create_task(beat())
        response = await client.send(request)
        heart.cancel()
    return response.status_code, beats


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema", "json_schema": NAMED}}, 200),
        ("/v1/chat/completions", {**CHAT, "guided_json": UNENFORCEABLE}, 400),
        ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "required"}, 400),
        ("/v1/responses", {"input": "표?", "text": {"format": {"type": "json_schema", **NAMED}}}, 200),
    ],
)
async def test_a_large_schema_is_checked_beside_the_loop(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], status: int
) -> None:
    told, beats = await beats_during(tokenizer, path, body)
    assert told == status and beats > 200
    for module in (json_route, bodies):
        monkeypatch.setattr(module, "_LONG_BYTES", 2**30)
    monkeypatch.setattr(grammar_check, "_on_event_loop", lambda: False)
    grammar_check._known.clear()
    told, beats = await beats_during(tokenizer, path, body)
    assert told == status and beats < 50
