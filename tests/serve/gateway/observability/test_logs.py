"""Log lines of real requests over a real socket."""

import json
import logging
from collections.abc import Callable
from io import StringIO
from typing import Any

import httpx
import pytest

from support.metrics import Scrape
from support.observed import BODY, SLOW, ask, leave, root, served, wait_for
from support.running_gateway import CONTENT, MODEL, REASONING, Gateway
from support.served_app import serve_app
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.observability import ObservabilityConfig
from trillion_serve.gateway.security.front import FrontSettings
from trillion_serve.gateway.security.keys import ApiKey, Keyring, digest_of, new_secret


def test_a_request_leaves_one_line(
    json_lines: Callable[[str], list[dict[str, Any]]], gateway: Gateway, tokenizer: ChatTokenizer
) -> None:
    usage = ask(root(gateway), {"x-request-id": "mine"}, n=2, stream=False).json()["usage"]
    (line,) = json_lines("trillion_serve.access")
    line.pop("vllm_process_name", None)  # vLLM, once it is imported, adds it to every record
    times = [line.pop(name) for name in ("time", "duration", "ttft")]
    assert times[0].endswith(("Z", "+00:00"))
    assert 0 < times[2] <= times[1]
    assert line == {
        "level": "INFO",
        "logger": "trillion_serve.access",
        "message": "POST /v1/chat/completions 200",
        "request_id": "mine",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": MODEL,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
        "finish_reasons": ["stop", "stop"],
    }


def test_a_request_that_is_turned_away_leaves_its_error(
    json_lines: Callable[[str], list[dict[str, Any]]], gateway: Gateway
) -> None:
    ask(root(gateway), temperature=3)
    (line,) = json_lines("trillion_serve.access")
    assert (line["status"], line["error"]) == (400, "invalid_value")
    assert "model" not in line
    assert "finish_reasons" not in line


def test_a_line_names_the_key(json_lines: Callable[[str], list[dict[str, Any]]], tokenizer: ChatTokenizer) -> None:
    secret = new_secret()
    front = FrontSettings(keys=Keyring([ApiKey("team-a", digest_of(secret))]))
    engine = FakeEngine(lambda _: [*tokenizer.encode("응\n</think>\n\n둘"), *tokenizer.end_ids])
    with serve_app(create_app(Models([ServedModel(MODEL, engine, tokenizer)]), front)) as url:
        assert ask(url, {"authorization": f"Bearer {secret}"}).status_code == 200
        refused = ask(url, {"authorization": "Bearer wrong", "x-request-id": "mine"})
        found = Scrape(url)
    first, second = json_lines("trillion_serve.access")
    assert (first["status"], first["key"]) == (200, "team-a")
    assert (second["status"], second["error"], "key" in second) == (401, "invalid_api_key", False)
    assert refused.headers["x-request-id"] == second["request_id"] == "mine"
    assert found("trillion:rejected_total", reason="invalid_api_key") == 1
    assert secret not in str(first)


@SLOW
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_left_is_told_of(
    json_lines: Callable[[str], list[dict[str, Any]]], gateway: Gateway, stream: bool
) -> None:
    if stream:
        leave(gateway)
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/chat/completions", json=BODY, timeout=0.15)
    (line,) = json_lines("trillion_serve.access")
    assert (line["status"], line["client_gone"], line["finish_reasons"]) == (499, True, ["abort"])
    assert "error" not in line


def test_no_secret_is_logged_and_no_body_unless_asked(text_log: StringIO, gateway: Gateway) -> None:
    secrets = {"authorization": "Bearer sk-hidden-1", "x-api-key": "sk-hidden-2", "cookie": "session=sk-hidden-3"}
    httpx.post(f"{gateway.url}/chat/completions?api_key=sk-hidden-4", json=BODY, headers=secrets)
    httpx.post(f"{gateway.url}/chat/completions?api_key=sk-hidden-4", json={**BODY, "n": 0}, headers=secrets)
    wait_for(lambda: "POST /v1/chat/completions 400" in text_log.getvalue())
    logged = text_log.getvalue()
    assert "POST /v1/chat/completions 200" in logged
    assert "sk-hidden" not in logged
    assert "둘은" not in logged
    assert CONTENT not in logged


@pytest.mark.parametrize("log_bodies", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_bodies_are_logged_when_asked(
    json_lines: Callable[[str], list[dict[str, Any]]],
    stderr: StringIO,
    tokenizer: ChatTokenizer,
    log_bodies: bool,
    stream: bool,
) -> None:
    engine = FakeEngine(lambda asked: [*tokenizer.encode(f"{REASONING}\n</think>\n\n{CONTENT}"), *tokenizer.end_ids])
    config = ObservabilityConfig(log_bodies=log_bodies)
    with serve_app(served(engine, tokenizer, config)) as url:
        answer = ask(url, {"authorization": "Bearer sk-hidden", "x-request-id": "mine"}, stream=stream)
    assert "sk-hidden" not in stderr.getvalue()
    if not log_bodies:
        assert "trillion_serve.bodies" not in stderr.getvalue()
        return
    (line,) = json_lines("trillion_serve.bodies")
    assert json.loads(line["request_body"]) == {**BODY, "stream": stream}
    assert line["response_body"] == answer.text
    assert line["request_id"] == "mine"


def test_probes_are_logged_only_when_debugging(
    json_lines: Callable[[str], list[dict[str, Any]]], stderr: StringIO, gateway: Gateway
) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        gateway.get(path)
    assert [line["path"] for line in json_lines("trillion_serve.access")] == ["/v1/models"]
    logging.getLogger("trillion_serve").setLevel("DEBUG")
    gateway.get("/health")
    wait_for(lambda: "/health" in stderr.getvalue())


def test_a_traceback_is_one_line_with_the_id(
    json_lines: Callable[[str], list[dict[str, Any]]], gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.engine, "_reply", lambda asked: 1 / 0)
    ask(root(gateway), {"x-request-id": "mine"})
    (line,) = json_lines("trillion_serve.gateway.observability.middleware")
    assert (line["level"], line["request_id"]) == ("ERROR", "mine")
    assert "ZeroDivisionError" in line["exc_info"]
