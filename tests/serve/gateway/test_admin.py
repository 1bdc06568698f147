"""Changing what runs, through the admin API over a real socket."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.running_chain import MODEL, Chain, answering, replica, run_chain, seen
from support.upstream_servers import VllmUpstream, serving, until
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.gateway.security.keys import digest_of, new_secret

USER, ADMIN = new_secret(), new_secret()
KEYS = [
    {"name": "team-a", "sha256": digest_of(USER)},
    {"name": "ops", "sha256": digest_of(ADMIN), "admin": True},
]
ADMIN_HEADERS = {"Authorization": f"Bearer {ADMIN}"}
REPLICAS = f"/admin/models/{MODEL}/replicas"


@pytest.fixture
async def upstreams(tokenizer: ChatTokenizer) -> AsyncIterator[dict[str, tuple[VllmUpstream, str]]]:
    """Two servers, with their addresses; the model says which one it is."""
    one, other = answering(tokenizer, "하나"), answering(tokenizer, "둘")
    async with serving(one.app()) as first, serving(other.app()) as second:
        yield {"a": (one, first), "b": (other, second)}


@pytest.fixture
async def chain(tokenizer_dir: Path, tmp_path: Path, upstreams: Any) -> AsyncIterator[Chain]:
    """A gateway in front of the first of them."""
    urls = {"a": upstreams["a"][1]}
    async with run_chain(tokenizer_dir, tmp_path / "gateway.yaml", urls, keys=KEYS) as running:
        running.client.headers["Authorization"] = f"Bearer {USER}"
        yield running


async def admin(chain: Chain, method: str, path: str, status: int, **body: Any) -> dict[str, Any]:
    answer = await chain.client.request(method, path, json=body or None, headers=ADMIN_HEADERS)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_only_an_admin_key_opens_it(chain: Chain) -> None:
    for method, path in (
        ("GET", "/admin/models"),
        ("POST", REPLICAS),
        ("POST", f"{REPLICAS}/a/drain"),
        ("DELETE", f"{REPLICAS}/a"),
        ("POST", "/admin/reload"),
    ):
        assert (await chain.client.request(method, path, json={})).status_code == 401
    assert chain.states() == {"a": "ready"}


async def test_it_shows_what_runs(chain: Chain) -> None:
    await chain.content()
    (model,) = (await admin(chain, "GET", "/admin/models", 200))["models"]
    assert model["name"] == MODEL
    (shown,) = model["pool"]["replicas"]
    assert {name: shown[name] for name in ("name", "state", "breaker", "requests", "running", "failures")} == {
        "name": "a",
        "state": "ready",
        "breaker": "closed",
        "requests": 1,
        "running": 0,
        "failures": 0,
    }
    assert shown["info"]["engine"].startswith("vLLM") or "0.32.0" in shown["info"]["engine"]


async def test_a_replica_is_added_drained_and_removed(chain: Chain, upstreams: Any) -> None:
    assert await chain.content() == "하나"
    await admin(chain, "POST", REPLICAS, 201, **replica("b", upstreams["b"][1]))
    await until(lambda: chain.states() == {"a": "ready", "b": "ready"})
    drained = await admin(chain, "POST", f"{REPLICAS}/a/drain", 202)
    assert drained["pool"]["replicas"][0]["state"] == "draining"
    assert await chain.content() == "둘"
    await admin(chain, "DELETE", f"{REPLICAS}/a", 202)
    await until(lambda: chain.states() == {"b": "ready"})
    assert await chain.content() == "둘"
    assert seen(upstreams["a"][0]) == 1


async def test_removing_waits_for_what_is_under_way(chain: Chain, upstreams: Any) -> None:
    upstreams["a"][0].interval = 0.1
    async with chain.stream() as events:
        await anext(events)
        await admin(chain, "DELETE", f"{REPLICAS}/a", 202)
        assert chain.states() == {"a": "draining"}
        assert (await chain.post()).status_code == 503
        assert [event async for event in events][-1] == "[DONE]"
    await until(lambda: chain.states() == {})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", REPLICAS, replica("a", "http://127.0.0.1:9"), 409, "replica_exists"),
        ("POST", "/admin/models/none/replicas", replica("b", "http://127.0.0.1:9"), 404, "model_not_found"),
        ("POST", REPLICAS, {**replica("b", "http://127.0.0.1:9"), "api_key_env": "PATH"}, 400, None),
        ("POST", REPLICAS, {**replica("b", "http://127.0.0.1:9"), "kind": "other"}, 400, "invalid_value"),
        ("POST", REPLICAS, {**replica("b", "http://127.0.0.1:9"), "extra": 1}, 400, "invalid_value"),
        ("POST", REPLICAS, replica("b", "127.0.0.1:9"), 400, "invalid_value"),
        ("POST", f"{REPLICAS}/none/drain", None, 404, "replica_not_found"),
        ("DELETE", f"{REPLICAS}/none", None, 404, "replica_not_found"),
    ],
)
async def test_what_cannot_be_done_is_told(
    chain: Chain, method: str, path: str, body: dict[str, Any] | None, status: int, code: str | None
) -> None:
    told = await admin(chain, method, path, status, **(body or {}))
    assert told["error"]["code"] == code
    assert chain.states() == {"a": "ready"}


async def test_a_reload_does_what_the_file_says(chain: Chain, upstreams: Any) -> None:
    (model,) = chain.config["models"]
    model["replicas"] = [replica("b", upstreams["b"][1])]
    chain.config["models"] = [model, {**model, "name": "셋", "replicas": []}]
    chain.write()
    assert (await admin(chain, "POST", "/admin/reload", 200))["changes"] == [
        "model 셋 added",
        f"model {MODEL}: replica b added",
        f"model {MODEL}: replica a removed once it has finished",
    ]
    await until(lambda: chain.states() == {"b": "ready"})
    assert await chain.content() == "둘"
    cards = (await chain.client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["max_model_len"]) for card in cards] == [(MODEL, 2048), ("셋", None)]
    assert (await chain.post(model="셋")).status_code == 503
    del chain.config["models"][1]
    chain.write()
    assert (await admin(chain, "POST", "/admin/reload", 200))["changes"] == ["model 셋 removed"]
    assert (await chain.post(model="셋")).status_code == 404


async def test_a_reload_without_changes_does_nothing(chain: Chain) -> None:
    assert (await admin(chain, "POST", "/admin/reload", 200))["changes"] == []
    assert chain.states() == {"a": "ready"}


async def test_a_reload_undoes_what_the_admin_api_added(chain: Chain, upstreams: Any) -> None:
    await admin(chain, "POST", REPLICAS, 201, **replica("b", upstreams["b"][1]))
    await admin(chain, "POST", "/admin/reload", 200)
    await until(lambda: chain.states() == {"a": "ready"})


async def test_keys_and_limits_change_at_a_reload(chain: Chain) -> None:
    fresh = new_secret()
    chain.config["keys"] = [{"name": "team-b", "sha256": digest_of(fresh)}, KEYS[1]]
    chain.config["server"] = {"limits": {"body_bytes": 10}}
    chain.write()
    told = await admin(chain, "POST", "/admin/reload", 200)
    assert told["changes"] == ["key team-b added", "key team-a removed", "limit body_bytes changed from 16777216 to 10"]
    assert (await chain.post()).status_code == 401
    chain.client.headers["Authorization"] = f"Bearer {fresh}"
    assert (await chain.post()).status_code == 413
    chain.config["keys"][0]["concurrency"] = 3
    chain.write()
    assert (await admin(chain, "POST", "/admin/reload", 200))["changes"] == ["key team-b changed"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([], "no API key any more, which would open the API to all"),
        ([KEYS[1]], "no API key any more, which would open the API to all"),
        ([KEYS[0]], "no admin key any more, which would turn the admin API off"),
    ],
)
async def test_a_reload_turns_no_keys_off(
    chain: Chain, keys: list[Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    chain.config["keys"] = keys
    chain.write()
    told = await admin(chain, "POST", "/admin/reload", 400)
    assert why in told["error"]["message"]
    assert why in caplog.text
    del chain.client.headers["Authorization"]
    assert (await chain.post()).status_code == 401


async def test_a_reload_turns_keys_off_if_that_is_said_to_be_meant(
    chain: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    chain.config |= {"keys": [], "server": {"insecure": True}}
    chain.write()
    told = await admin(chain, "POST", "/admin/reload", 200)
    assert told["changes"] == ["key team-a removed", "admin key ops removed"]
    assert "read again: key team-a removed; admin key ops removed" in caplog.text
    del chain.client.headers["Authorization"]
    assert (await chain.post()).status_code == 200


@pytest.mark.parametrize("emptied", ["gateway.yaml", "keys.yaml"])
async def test_an_empty_file_changes_nothing(chain: Chain, emptied: str) -> None:
    keys_file = chain.path.parent / "keys.yaml"
    keys_file.write_text(yaml.safe_dump({"keys": KEYS}))
    chain.config |= {"keys": [], "keys_file": keys_file.name}
    chain.write()
    assert (await admin(chain, "POST", "/admin/reload", 200))["changes"] == []
    (chain.path.parent / emptied).write_text("")
    told = await admin(chain, "POST", "/admin/reload", 400)
    assert f"{emptied} is empty" in told["error"]["message"]
    assert await chain.content() == "하나"
    del chain.client.headers["Authorization"]
    assert (await chain.post()).status_code == 401


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"models": [{"name": "x"}]}, "models[0].tokenizer: Field required"),
        ({"models": [{"name": "x", "tokenizer": "/nowhere"}]}, "no tokenizer that can be loaded"),
        ({"keys": [KEYS[0], KEYS[0]]}, "two of the keys are called 'team-a'"),
        ({"keys_file": "none.yaml"}, "cannot be read"),
    ],
)
async def test_a_wrong_file_changes_nothing_and_says_why(chain: Chain, change: dict[str, Any], why: str) -> None:
    chain.config |= change
    chain.write()
    told = await admin(chain, "POST", "/admin/reload", 400)
    assert told["error"]["code"] == "invalid_configuration"
    assert why in told["error"]["message"]
    assert await chain.content() == "하나"
    assert chain.states() == {"a": "ready"}


async def test_a_pool_is_only_replaced_by_one_that_is_ready(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trillion_serve.gateway.deployment._READY_SECONDS", 0.3)
    (model,) = chain.config["models"]
    model["pool"] = {**model["pool"], "queue_size": 3}
    model["replicas"] = [replica("c", "http://127.0.0.1:9")]
    chain.write()
    told = await admin(chain, "POST", "/admin/reload", 400)
    assert "no engine was ready" in told["error"]["message"]
    assert await chain.content() == "하나"
    assert chain.states() == {"a": "ready"}


# Sends the process a hangup while it reads the file to know where to listen, and while it starts to serve it.
HUNG_UP_ON_AT_THE_START = """
import os, signal
from trillion_serve.gateway.config import GatewayConfig
read, signals = GatewayConfig.read, [signal.SIGHUP] * 2
def interrupted(path):
    if signals: os.kill(os.getpid(), signals.pop())
    return read(path)
GatewayConfig.read = interrupted
from trillion_serve.cli.main import main; main()
"""


def test_sighup_reloads(tokenizer_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    config = {"models": [{"name": "one", "tokenizer": str(tokenizer_dir)}], "server": {"port": 0}}
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-c", HUNG_UP_ON_AT_THE_START, "serve", "--config", str(path)]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        gateway = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    try:
        assert gateway.stdout is not None
        line = next(line for line in gateway.stdout if line.startswith("Serving "))
        url = line.split(" at ")[1].strip()

        def names() -> list[str]:
            return [card["id"] for card in httpx.get(f"{url}/models").json()["data"]]

        assert names() == ["one"]
        deadline = time.monotonic() + 20
        while "the configuration was read again: all is as before" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        config["models"].append({**config["models"][0], "name": "two"})  # type: ignore[attr-defined, index]
        path.write_text(yaml.safe_dump(config))
        gateway.send_signal(signal.SIGHUP)
        while names() != ["one", "two"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        path.write_text("models: {}")
        gateway.send_signal(signal.SIGHUP)
        while "nothing was changed" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert names() == ["one", "two"]
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(20) == 0
    finally:
        gateway.kill()
        gateway.wait()
