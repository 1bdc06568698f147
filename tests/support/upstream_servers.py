"""Small servers that speak vLLM's and SGLang's wire forms on a real socket, and go wrong when told to."""

import asyncio
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

VOCABULARY = 512
"""Tokens that the SGLang server knows."""


async def until(found: Callable[[], object], seconds: float = 10.0) -> None:
    """Return once ``found`` is true.

    Raises:
        TimeoutError: it is not in time.
    """
    async with asyncio.timeout(seconds):
        for pause in itertools.repeat(0.005):
            if found():
                return
            await asyncio.sleep(pause)


@asynccontextmanager
async def serving(app: Any, port: int = 0) -> AsyncIterator[str]:
    """The base URL of an ASGI application that serves until the block ends."""
    config = uvicorn.Config(app, port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = suppress  # uvicorn would take over the test runner's signals
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await task


@dataclass
class Upstream:
    """What a server has seen, and what it will do.

    Attributes:
        tokens: the answer to every prompt; its last token is a stop token when ``stops`` is set.
        chunk: tokens in an event.
        interval: seconds before each event.
        faults: one is used up by each request to generate, "" for none. "hang" sends nothing, "hang_later"
            nothing after the first event, "break" closes the connection after the first event, "garbage" sends
            an event that is no JSON, "error_event" an error within the stream; a number is an HTTP status.
        hung: answers nothing at all.
        measured: tells what it is doing; vLLM's server then also tells the size of its cache.
        key: the bearer token that requests must carry, if any.
        requests: bodies of the requests to generate.
        ended: ids of the requests whose answer was sent to its end.
        left: ids of the requests whose client went away, with the time on the loop's clock.
        aborted: ids that were aborted by ``/abort_request``, with the time.
    """

    tokens: tuple[int, ...] = (11, 12, 13, 14, 15)
    stops: bool = True
    chunk: int = 1
    interval: float = 0.0
    faults: deque[str] = field(default_factory=deque)
    healthy: bool = True
    hung: bool = False
    measured: bool = True
    key: str | None = None
    cached_tokens: int = 3
    requests: list[dict[str, Any]] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    left: dict[str, float] = field(default_factory=dict)
    aborted: dict[str, float] = field(default_factory=dict)

    def routes(self) -> list[Route]:
        """What the server answers."""
        return [Route("/health", self.health)]

    def app(self) -> ASGIApp:
        """The application."""
        inner = Starlette(routes=self.routes())

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if self.hung:
                await asyncio.sleep(3600)
            told = dict(scope["headers"]).get(b"authorization", b"").decode()
            wrong = self.key is not None and told != f"Bearer {self.key}"
            refusal = JSONResponse({"error": "Unauthorized"}, 401)
            await (refusal if wrong else inner)(scope, receive, send)

        return guarded

    async def health(self, request: Request) -> Response:
        """200 or 503."""
        return Response(status_code=200 if self.healthy else 503)

    async def events(self, request_id: str, fault: str, frames: list[Any]) -> AsyncIterator[bytes]:
        """The bytes of a stream, with a fault in it."""
        try:
            for number, frame in enumerate(frames):
                if fault == "hang" or (fault == "hang_later" and number):
                    await asyncio.sleep(3600)
                if fault == "break" and number:
                    raise ConnectionAbortedError("the test breaks this answer off")
                if fault == "garbage":
                    yield b'data: {"choices": [{]}\n\n'
                if fault == "error_event":
                    yield b'data: {"error": {"message": "CUDA out of memory", "code": 500}}\n\n'
                await asyncio.sleep(self.interval)
                yield b"data: " + json.dumps(frame).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
            self.ended.add(request_id)
        except asyncio.CancelledError:
            self.left[request_id] = asyncio.get_running_loop().time()
            raise

    def chunks(self) -> list[tuple[int, ...]]:
        """The answer in events."""
        return [self.tokens[i : i + self.chunk] for i in range(0, len(self.tokens), self.chunk)]


def logprob(token: int) -> float:
    """The log-probability that these servers give a token; the tokens after it come next in rank."""
    return -token / 16


class VllmUpstream(Upstream):
    """vLLM's server: completions, models, version, metrics, health."""

    def routes(self) -> list[Route]:
        """What the server answers."""
        return [
            *super().routes(),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/version", self.version),
            Route("/metrics", self.metrics),
        ]

    async def models(self, request: Request) -> Response:
        """Two models, as with an adapter."""
        cards = [
            {"id": "base", "object": "model", "root": "/weights/base", "max_model_len": 2048},
            {"id": "adapter", "object": "model", "root": "/weights/adapter", "parent": "base", "max_model_len": None},
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def version(self, request: Request) -> Response:
        """The version."""
        return JSONResponse({"version": "0.32.0"})

    async def metrics(self, request: Request) -> Response:
        """Two data-parallel engines, or nothing."""
        if not self.measured:
            return Response(status_code=404)
        line = 'vllm:cache_config_info{{block_size="16",engine="{}",kv_cache_memory_bytes="1024",{}}} 1.0\n'
        gauges = {"num_requests_running": (3, 4), "num_requests_waiting": (0, 2), "kv_cache_usage_perc": (0.25, 0.5)}
        return PlainTextResponse(
            "".join(
                f'vllm:{name}{{engine="{engine}",model_name="base"}} {float(value)}\n'
                for name, values in gauges.items()
                for engine, value in enumerate(values)
            )
            + 'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0\n'
            + "# HELP vllm:cache_config_info Information\n"
            + line.format(0, 'kv_cache_size_tokens="5000",num_gpu_blocks="4"')
            + line.format(1, 'kv_cache_size_tokens="None",num_gpu_blocks="4"')
        )

    async def completions(self, request: Request) -> Response:
        """Stream the answer, or score the prompt."""
        body = await request.json()
        if not body.get("stream"):
            return JSONResponse({"choices": [{"prompt_logprobs": self._prompt_logprobs(body)}]})
        self.requests.append(body)
        fault = self.faults.popleft() if self.faults else ""
        if fault.isdigit():
            headers = {"Retry-After": "7"} if fault == "429" else None
            error = {"message": f"status {fault}", "type": "Error", "param": None, "code": int(fault)}
            return JSONResponse({"error": error}, int(fault), headers)
        frames = self._frames(body)
        return StreamingResponse(self.events(body["request_id"], fault, frames), media_type="text/event-stream")

    def _frames(self, body: dict[str, Any]) -> list[Any]:
        chunks = self.chunks()
        frames = []
        for number, tokens in enumerate(chunks):
            last = number == len(chunks) - 1
            choice: dict[str, Any] = {"index": 0, "text": "x" * len(tokens), "token_ids": tokens, "logprobs": None}
            choice["finish_reason"] = ("stop" if self.stops else "length") if last else None
            if number == 0:
                choice["prompt_token_ids"] = body["prompt"]
            if body.get("logprobs") is not None:
                choice["logprobs"] = {
                    "text_offset": [0] * len(tokens),
                    "tokens": [f"token_id:{token}" for token in tokens],
                    "token_logprobs": [logprob(token) for token in tokens],
                    "top_logprobs": [
                        {f"token_id:{t}": logprob(t) for t in range(token, token + max(body["logprobs"], 1))}
                        for token in tokens
                    ],
                }
            frames.append({"id": "cmpl-1", "object": "text_completion", "model": "base", "choices": [choice]})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(self.tokens)}
        details = {"prompt_tokens_details": {"cached_tokens": self.cached_tokens}}
        return [*frames, {"id": "cmpl-1", "object": "text_completion", "choices": [], "usage": usage | details}]

    def _prompt_logprobs(self, body: dict[str, Any]) -> list[Any]:
        def entry(token: int) -> dict[str, Any]:
            others = [t for t in range(token - 1, token + body["prompt_logprobs"]) if t >= token]
            return {
                str(t): {"logprob": logprob(t), "rank": t - token + 1, "decoded_token": "x"} for t in others or [token]
            }

        return [None, *(entry(token) for token in body["prompt"][1:])]


@dataclass
class SglangUpstream(Upstream):
    """SGLang's server: generate, abort_request, server_info, models, health."""

    incremental: bool = False

    def routes(self) -> list[Route]:
        """What the server answers."""
        return [
            *super().routes(),
            Route("/generate", self.generate, methods=["POST"]),
            Route("/abort_request", self.abort_request, methods=["POST"]),
            Route("/server_info", self.server_info),
            Route("/v1/loads", self.loads),
            Route("/v1/models", self.models),
        ]

    async def server_info(self, request: Request) -> Response:
        """What was started, the context length not among it."""
        return JSONResponse(
            {
                "model_path": "/weights/base",
                "served_model_name": "base",
                "context_length": None,
                "dtype": "bfloat16",
                "max_total_num_tokens": 9000,
                "version": "0.5.23",
            }
        )

    async def models(self, request: Request) -> Response:
        """One model."""
        return JSONResponse({"object": "list", "data": [{"id": "base", "max_model_len": 4096}]})

    async def loads(self, request: Request) -> Response:
        """Two data-parallel ranks, or nothing."""
        if not self.measured:
            return Response(status_code=404)
        core = {"timestamp": 1.0, "max_total_num_tokens": 9000, "gen_throughput": 0.0}
        ranks = [
            {"dp_rank": 0, "num_running_reqs": 1, "num_waiting_reqs": 2, "token_usage": 0.5} | core,
            {"dp_rank": 1, "num_running_reqs": 4, "num_waiting_reqs": 0, "token_usage": 0.25} | core,
        ]
        return JSONResponse({"version": "0.5.23", "loads": ranks})

    async def abort_request(self, request: Request) -> Response:
        """Note that a request was aborted."""
        self.aborted[(await request.json())["rid"]] = asyncio.get_running_loop().time()
        return Response()

    async def generate(self, request: Request) -> Response:
        """Stream the answer, or score the prompt."""
        body = await request.json()
        beyond = [token for token in body["sampling_params"].get("logit_bias", ()) if int(token) >= VOCABULARY]
        if beyond:
            message = f"logit_bias must has keys in [0, {VOCABULARY - 1}], got {beyond[0]}."
            return JSONResponse({"error": {"message": message}}, 400)
        if not body.get("stream"):
            return JSONResponse({"text": "x", "output_ids": [1], "meta_info": self._scored(body)})
        self.requests.append(body)
        fault = self.faults.popleft() if self.faults else ""
        if fault.isdigit():
            return JSONResponse({"error": {"message": f"status {fault}"}}, int(fault))
        return StreamingResponse(self.events(body["rid"], fault, self._frames(body)), media_type="text/event-stream")

    def _frames(self, body: dict[str, Any]) -> list[Any]:
        frames = []
        done = 0
        for tokens in self.chunks():
            start, done = (done if self.incremental else 0), done + len(tokens)
            shown = self.tokens[start:done]
            last = done == len(self.tokens)
            finish = {"type": "stop", "matched": tokens[-1]} if self.stops else {"type": "length", "length": done}
            meta: dict[str, Any] = {
                "id": body["rid"],
                "finish_reason": finish if last else None,
                "prompt_tokens": len(body["input_ids"]),
                "completion_tokens": done,
                "cached_tokens": self.cached_tokens,
            }
            if body.get("return_logprob"):
                meta["output_token_logprobs"] = [[logprob(t), t, None] for t in shown]
                meta["output_token_logprobs_length"] = done
                meta["input_token_logprobs"] = []
                if body["top_logprobs_num"]:
                    meta["output_top_logprobs"] = [_top(t, body["top_logprobs_num"]) for t in shown]
            frames.append({"text": "x" * len(shown), "output_ids": shown, "meta_info": meta})
        return frames

    def _scored(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, top = body["input_ids"], body["top_logprobs_num"]
        meta = {"input_token_logprobs": [[None, prompt[0], None], *([logprob(t), t, None] for t in prompt[1:])]}
        if top:
            meta["input_top_logprobs"] = [None, *(_top(t, top) for t in prompt[1:])]
        return meta | {"finish_reason": {"type": "length", "length": 1}, "completion_tokens": 1}


def _top(token: int, count: int) -> list[list[Any]]:
    return [[logprob(t), t, None] for t in range(token, token + count)]
