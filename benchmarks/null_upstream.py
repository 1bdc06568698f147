"""An upstream without a model: every answer is the same chunks, sent so many milliseconds apart.

It speaks chat completions, for gateways that pass bytes through, and vLLM's completions with token ids, for ours.

    python benchmarks/null_upstream.py --port 9001 --interval-ms 20
"""

import asyncio
import json
import time
from typing import Annotated, Any

import typer
import uvicorn
from starlette.types import Receive, Scope, Send

CHUNKS = 32
LEFT = "/left"
"""Path that tells when clients left before their answer was complete, in seconds of the system's monotonic clock."""
MODEL = "null"
_WORD = " word"


class NullUpstream:
    """The ASGI application.

    Args:
        interval: seconds before each chunk.
        token_ids: one for each chunk.
        model: the name it serves.
    """

    def __init__(self, interval: float, token_ids: list[int], model: str = MODEL) -> None:
        self._interval = interval
        self._left: list[float] = []
        self._chat = [*map(_event, _chat_chunks(model, len(token_ids))), b"data: [DONE]\n\n"]
        self._plain = [*map(_event, _plain_chunks(model, token_ids)), b"data: [DONE]\n\n"]
        usage = {"prompt_tokens": 1, "completion_tokens": len(token_ids), "total_tokens": len(token_ids) + 1}
        head = {"id": "null", "created": 1, "model": model, "usage": usage}
        message = {"role": "assistant", "content": _WORD * len(token_ids)}
        chat = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        choice = {"index": 0, "text": _WORD * len(token_ids), "finish_reason": "stop", "token_ids": token_ids}
        self._chat_whole = json.dumps(head | chat).encode()
        self._plain_whole = json.dumps(head | {"object": "text_completion", "choices": [choice]}).encode()
        card = {"id": model, "object": "model", "created": 1, "owned_by": "null", "max_model_len": 32768}
        self._fixed = {
            "/health": b"{}",
            "/version": b'{"version": "0.32.0"}',
            "/metrics": b"",
            "/v1/models": json.dumps({"object": "list", "data": [card]}).encode(),
            "/get_model_info": json.dumps({"model_path": model, "is_generation": True}).encode(),
            "/get_server_info": json.dumps({"model_path": model, "served_model_name": model}).encode(),
            "/server_info": json.dumps({"model_path": model, "served_model_name": model}).encode(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path not in ("/v1/chat/completions", "/v1/completions"):
            body = json.dumps(self._left).encode() if path == LEFT else self._fixed.get(path)
            await _send_whole(send, 404 if body is None else 200, body or b"{}")
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        chat = path.endswith("/chat/completions")
        # The whole body is not parsed: what is measured is not this server.
        if b'"stream":true' in body.replace(b" ", b""):
            leaving = asyncio.create_task(self._note_leaving(receive))
            try:
                await self._send_stream(send, self._chat if chat else self._plain)
            finally:
                leaving.cancel()
        else:
            await _send_whole(send, 200, self._chat_whole if chat else self._plain_whole)

    async def _note_leaving(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left.append(time.monotonic())

    async def _send_stream(self, send: Send, events: list[bytes]) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        loop = asyncio.get_running_loop()
        due = loop.time()
        for number, event in enumerate(events):
            if self._interval and number < len(events) - 1:
                due += self._interval
                await asyncio.sleep(due - loop.time())
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _chat_chunks(model: str, count: int) -> list[dict[str, Any]]:
    def chunk(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {"id": "null", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}

    words = [
        chunk({"role": "assistant", "content": _WORD} if n == 0 else {"content": _WORD}, None) for n in range(count)
    ]
    words[-1]["choices"][0]["finish_reason"] = "stop"
    return words


def _plain_chunks(model: str, token_ids: list[int]) -> list[dict[str, Any]]:
    def chunk(token: int, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": _WORD, "logprobs": None, "finish_reason": finish_reason, "token_ids": [token]}
        return {"id": "null", "object": "text_completion", "created": 1, "model": model, "choices": [choice]}

    return [chunk(token, None if n < len(token_ids) - 1 else "stop") for n, token in enumerate(token_ids)]


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def _send_whole(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def main(
    port: Annotated[int, typer.Option(help="Port to listen on.")],
    interval_ms: Annotated[float, typer.Option(help="Milliseconds before each chunk.")] = 0.0,
    chunks: Annotated[int, typer.Option(help="Chunks of an answer, a token each.")] = CHUNKS,
    token_ids: Annotated[str, typer.Option(help="Token ids of an answer, between commas, over and over.")] = "300",
) -> None:
    """Serve on the loopback until stopped."""
    ids = [int(token) for token in token_ids.split(",")]
    app = NullUpstream(interval_ms / 1000, [ids[n % len(ids)] for n in range(chunks)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="off")


if __name__ == "__main__":
    typer.run(main)
