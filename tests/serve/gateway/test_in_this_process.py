"""A model whose engine runs in the gateway's own process, as a configuration file has it, over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.upstream_servers import serving
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.engines.protocol import Engine, GenerateRequest
from trillion_serve.engines.vllm import VllmOptions
from trillion_serve.errors import EngineStartError, ServeError
from trillion_serve.gateway.app import create_deployment_app
from trillion_serve.gateway.config import GatewayConfig, ModelConfig
from trillion_serve.gateway.deployment import Deployment
from trillion_serve.gateway.security.keys import digest_of, new_secret

MODEL = "here"
ADMIN = new_secret()
HEADERS = {"Authorization": f"Bearer {ADMIN}"}


class Gateway:
    """A gateway that runs, and its configuration file."""

    def __init__(self, path: Path, tokenizer_dir: Path, tokenizer: ChatTokenizer) -> None:
        self.path = path
        self.model: dict[str, Any] = {
            "name": MODEL,
            "tokenizer": str(tokenizer_dir),
            "engine": {"model": str(tokenizer_dir), "max_model_len": 512},
            "thinking": {"on": True, "budget": 8, "transitions": {"ko": "그만.", "en": "Enough."}},
        }
        self.config: dict[str, Any] = {
            "models": [self.model],
            "keys": [{"name": "ops", "sha256": digest_of(ADMIN), "admin": True}],
            "server": {"limits": {"messages": 2}},
        }
        self.started: list[ModelConfig] = []
        self.engines: list[FakeEngine] = []
        self.deployment = Deployment(self.read, self.start)
        self.client: httpx.AsyncClient
        self._tokenizer = tokenizer

    def read(self) -> GatewayConfig:
        self.path.write_text(yaml.safe_dump(self.config, allow_unicode=True))
        return GatewayConfig.read(self.path)

    async def start(self, config: ModelConfig) -> Engine:
        def reply(request: GenerateRequest) -> list[int]:
            prompt = self._tokenizer.backend.decode(list(request.prompt_token_ids), skip_special_tokens=False)
            text = (
                "둘."
                if prompt.rstrip().endswith("</think>")
                else "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열\n</think>\n\n둘."
            )
            return [*self._tokenizer.encode(text), *self._tokenizer.end_ids[:1]]

        self.started.append(config)
        self.engines.append(FakeEngine(reply, context_length=512))
        return self.engines[-1]

    async def ask(self, messages: int = 1) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Two?"}] * messages}
        return await self.client.post("/v1/chat/completions", json=body)

    async def reload(self) -> dict[str, Any]:
        return (await self.client.post("/admin/reload", headers=HEADERS)).json()


@pytest.fixture
async def gateway(tmp_path: Path, tokenizer_dir: Path, tokenizer: ChatTokenizer) -> AsyncIterator[Gateway]:
    running = Gateway(tmp_path / "gateway.yaml", tokenizer_dir, tokenizer)
    async with AsyncExitStack() as stack:
        await running.deployment.reload()
        stack.push_async_callback(running.deployment.close)
        url = await stack.enter_async_context(serving(create_deployment_app(running.deployment)))
        running.client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
        yield running


async def test_thinking_and_limits_are_what_the_file_says(gateway: Gateway, tokenizer_dir: Path) -> None:
    (started,) = gateway.started
    assert started.engine == VllmOptions(str(tokenizer_dir), max_model_len=512)
    (choice,) = (await gateway.ask()).json()["choices"]
    assert choice["interventions"] == ["thinking_budget"]
    assert choice["message"]["reasoning"].endswith("Enough.")
    assert choice["message"]["content"] == "둘."
    assert (await gateway.ask(messages=3)).json()["error"]["code"] == "too_many_items"


async def test_a_reload_changes_them_and_keeps_the_engine(gateway: Gateway) -> None:
    gateway.model["thinking"] = {"on": False}
    gateway.config["server"]["limits"]["messages"] = 3
    assert await gateway.reload() == {"changes": ["limit messages changed from 2 to 3", f"model {MODEL} changed"]}
    answer = await gateway.ask(messages=3)
    assert answer.json()["choices"][0]["message"].get("reasoning") is None
    assert len(gateway.started) == 1


@pytest.mark.parametrize("part", ["engine", "pool", "timeouts", "models"])
async def test_what_a_running_engine_depends_on_changes_with_a_restart_only(gateway: Gateway, part: str) -> None:
    if part == "models":
        gateway.config["models"] = []
    else:
        changed = {"engine": {"max_model_len": 1024}, "pool": {"queue_size": 3}, "timeouts": {"connect": 1.0}}[part]
        gateway.model[part] = {**gateway.model.get(part, {}), **changed}
    told = await gateway.reload()
    assert "change with a restart only" in told["error"]["message"]
    assert (await gateway.ask()).status_code == 200


async def test_it_has_no_replicas_to_add_or_drain(gateway: Gateway) -> None:
    replica = {"name": "a", "kind": "vllm", "url": "http://127.0.0.1:9"}
    told = await gateway.client.post(f"/admin/models/{MODEL}/replicas", json=replica, headers=HEADERS)
    assert (told.status_code, told.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_engine_that_does_not_start_is_told_and_those_before_it_are_closed(
    tmp_path: Path, tokenizer_dir: Path, tokenizer: ChatTokenizer
) -> None:
    gateway = Gateway(tmp_path / "gateway.yaml", tokenizer_dir, tokenizer)
    gateway.config["models"] = [gateway.model, {**gateway.model, "name": "other"}]

    async def start(config: ModelConfig) -> Engine:
        if gateway.started:
            raise EngineStartError("no room")
        return await gateway.start(config)

    deployment = Deployment(gateway.read, start)
    with pytest.raises(ServeError, match="no room"):
        await deployment.reload()
    await asyncio.sleep(0)
    with pytest.raises(ServeError):
        await gateway.engines[0].health()
