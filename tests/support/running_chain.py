"""The whole chain in one event loop: a client, a gateway from a configuration file, and upstream servers."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.upstream_servers import Upstream, VllmUpstream, serving, until
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.gateway.app import create_deployment_app
from trillion_serve.gateway.config import GatewayConfig
from trillion_serve.gateway.deployment import Deployment

MODEL = "둘"
QUICK = {
    "health": {"interval": 0.05, "timeout": 1.0, "failures": 1},
    "retry": {"first_wait": 0.01, "longest_wait": 0.02},
    "drain_timeout": 10.0,
}
"""A pool that notices soon, for tests."""


@dataclass
class Chain:
    """A gateway that runs.

    Attributes:
        path: its configuration file.
        config: what the file holds; change it and call ``write``, then reload.
        client: sends to the gateway's root.
    """

    path: Path
    config: dict[str, Any]
    deployment: Deployment = field(init=False)
    client: httpx.AsyncClient = field(init=False)

    def write(self) -> None:
        """Put ``config`` into the file."""
        self.path.write_text(yaml.safe_dump(self.config, allow_unicode=True), encoding="utf-8")

    def body(self, **fields: Any) -> dict[str, Any]:
        """A chat request."""
        return {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}], **fields}

    async def post(self, **fields: Any) -> httpx.Response:
        """Send a chat request."""
        return await self.client.post("/v1/chat/completions", json=self.body(**fields))

    async def content(self, **fields: Any) -> str:
        """What is answered to a chat request."""
        answer = await self.post(**fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    @asynccontextmanager
    async def stream(self, **fields: Any) -> AsyncIterator[AsyncIterator[str]]:
        """The data of a streamed answer's events."""
        body = self.body(stream=True, **fields)
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            yield (line.removeprefix("data: ") async for line in response.aiter_lines() if line)

    def states(self) -> dict[str, str]:
        """The replicas and what they are doing."""
        pool = self.deployment.models.get(MODEL).pool
        assert pool is not None
        return {replica.name: str(replica.state) for replica in pool.snapshot().replicas}

    async def all_ready(self) -> None:
        """Return when every replica takes requests."""
        await until(lambda: set(self.states().values()) == {"ready"})


def replica(name: str, url: str) -> dict[str, Any]:
    """An upstream in a configuration."""
    return {"name": name, "kind": "vllm", "url": url, "model": "base"}


@asynccontextmanager
async def run_chain(
    tokenizer_dir: Path, path: Path, urls: dict[str, str], *, pool: dict[str, Any] | None = None, **config: Any
) -> AsyncIterator[Chain]:
    """A gateway in front of replicas, once they are ready.

    Args:
        path: where to write its configuration.
        urls: of the replicas, by their names.
        pool: settings besides ``QUICK``.
        config: the configuration's other fields; ``timeouts`` is the model's.
    """
    model = {
        "name": MODEL,
        "tokenizer": str(tokenizer_dir),
        "replicas": [replica(name, url) for name, url in urls.items()],
        "pool": QUICK | (pool or {}),
        "timeouts": config.pop("timeouts", {}),
    }
    chain = Chain(path, {"models": [model], **config})
    chain.write()
    deployment = chain.deployment = Deployment(lambda: GatewayConfig.read(path))
    async with AsyncExitStack() as stack:
        await deployment.reload()
        stack.push_async_callback(deployment.close)
        url = await stack.enter_async_context(serving(create_deployment_app(deployment)))
        chain.client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
        await chain.all_ready()
        yield chain


def answering(tokenizer: ChatTokenizer, text: str, **options: Any) -> VllmUpstream:
    """An upstream that gives this answer to every prompt, without reasoning."""
    tokens = (*tokenizer.encode(f"</think>\n\n{text}"), *tokenizer.end_ids[:1])
    return VllmUpstream(tokens=tokens, **options)


def seen(upstream: Upstream) -> int:
    """Requests to generate that an upstream has had."""
    return len(upstream.requests)
