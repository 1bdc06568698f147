"""Clients that leave, and a server that is told to stop."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from support.running_gateway import CONTENT, MODEL, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer

SLOW: Any = pytest.mark.parametrize("gateway", [{"interval": 0.05}], indirect=True)
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}


def wait_for(condition: Callable[[], object], seconds: float) -> float:
    """Seconds until the condition held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "the condition did not come true"
        time.sleep(0.002)
    return time.monotonic() - began


@SLOW
@pytest.mark.parametrize("answers", [1, 3])
def test_a_client_that_leaves_a_stream_aborts_it_in_the_engine(gateway: Gateway, answers: int) -> None:
    body = {**BODY, "stream": True, "n": answers}
    with httpx.stream("POST", f"{gateway.url}/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        wait_for(lambda: len(gateway.engine.running) == answers, 2)
    wait_for(lambda: len(gateway.engine.aborted) == answers, 0.5)
    assert gateway.engine.running == set()


@SLOW
def test_a_client_that_leaves_before_the_first_byte_aborts_too(gateway: Gateway) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/chat/completions", json={**BODY, "stream": False}, timeout=0.2)
    wait_for(lambda: gateway.engine.aborted, 0.5)
    assert gateway.engine.running == set()


@SLOW
def test_other_requests_go_on_when_one_leaves(gateway: Gateway) -> None:
    answers: list[str] = []
    other = threading.Thread(target=lambda: answers.append(gateway.post().json()["choices"][0]["message"]["content"]))
    other.start()
    wait_for(lambda: gateway.engine.running, 2)
    with httpx.stream("POST", f"{gateway.url}/chat/completions", json={**BODY, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
    other.join(20)
    assert answers == [CONTENT]
    assert len(gateway.engine.aborted) == 1


def test_stopping_lets_requests_finish(tokenizer: ChatTokenizer) -> None:
    answers: list[str] = []

    def ask() -> None:
        answers.append(gateway.post().json()["choices"][0]["message"]["content"])

    with run_gateway(tokenizer, interval=0.02) as gateway:
        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: gateway.engine.running, 2)
    asking.join(10)
    assert answers == [CONTENT]
    assert gateway.engine.aborted == []


def test_stopping_does_not_wait_forever(tokenizer: ChatTokenizer) -> None:
    with run_gateway(tokenizer, interval=5.0) as gateway:
        gateway.server.config.timeout_graceful_shutdown = 1
        asking = threading.Thread(target=lambda: httpx.post(f"{gateway.url}/chat/completions", json=BODY))
        asking.start()
        wait_for(lambda: gateway.engine.running, 2)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 4
    assert len(gateway.engine.aborted) == 1
    asking.join(10)
