"""A gateway over the fake engine, running in a thread."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
from openai import OpenAI

from trillion_serve.chat.thinking import ThinkingSettings
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.engines.protocol import GenerateRequest
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.sampling import SamplingDefaults
from trillion_serve.gateway.security.front import FrontSettings
from trillion_serve.gateway.server import Server, listen, url_of

MODEL = "vaetki-test"
REASONING, CONTENT = "생각해 보자.\n답은 둘.", "답: 2. 끝"


@dataclass
class Gateway:
    """What a test sees of it. ``reply`` is what the model says next, or makes it from what reached the engine, all of
    which is in ``requests``."""

    engine: FakeEngine
    url: str
    server: Server
    reply: str | Callable[[GenerateRequest], str] = f"{REASONING}\n</think>\n\n{CONTENT}"
    requests: list[GenerateRequest] = field(default_factory=list)

    @property
    def client(self) -> OpenAI:
        """The real client, without retries."""
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=30)

    def get(self, path: str) -> httpx.Response:
        """Get a path from the root."""
        return httpx.get(self.url.removesuffix("/v1") + path, timeout=30)

    def post(self, **body: object) -> httpx.Response:
        """Send a chat request; the model and a message are there unless given."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}], **body}
        return httpx.post(f"{self.url}/chat/completions", json=body, timeout=30)


@contextlib.contextmanager
def run_gateway(
    tokenizer: ChatTokenizer,
    *,
    front: FrontSettings | None = None,
    thinking: ThinkingSettings | None = None,
    **engine_options: object,
) -> Iterator[Gateway]:
    """Serve on a free port of the loopback until the block ends."""

    def reply(asked: GenerateRequest) -> list[int]:
        gateway.requests.append(asked)
        seed = "" if asked.sampling.seed is None else f" ({asked.sampling.seed})"
        text = gateway.reply if isinstance(gateway.reply, str) else gateway.reply(asked)
        return [*tokenizer.encode(text + seed), *tokenizer.end_ids]

    engine = FakeEngine(reply, **engine_options)  # type: ignore[arg-type]
    sampling = SamplingDefaults(temperature=0.25, top_p=0.5, top_k=7)
    sock = listen("127.0.0.1", 0)
    up = threading.Event()
    app = create_app(Models([ServedModel(MODEL, engine, tokenizer, sampling, thinking or ThinkingSettings())]), front)
    server = Server(app, shutdown_timeout=5, on_ready=up.set)
    gateway = Gateway(engine, url_of(sock), server)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])), daemon=True)
    thread.start()
    try:
        assert up.wait(10)
        yield gateway
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
