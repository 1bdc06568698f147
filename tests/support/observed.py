"""Requests to a running gateway whose ids, logs, metrics and traces are looked at."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from support.metrics import Scrape
from support.running_gateway import MODEL, Gateway
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.observability import ObservabilityConfig

QUESTION = [{"role": "user", "content": "둘은?"}]
BODY: dict[str, Any] = {"model": MODEL, "messages": QUESTION}
SLOW = pytest.mark.parametrize("gateway", [{"interval": 0.02}], indirect=True)


def root(gateway: Gateway) -> str:
    """Where a gateway answers, without the API's version."""
    return gateway.url.removesuffix("/v1")


def scrape(gateway: Gateway) -> Scrape:
    """A gateway's metrics."""
    return Scrape(root(gateway))


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until the condition is true, which must be soon."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true"
        time.sleep(0.01)


def ask(base_url: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    """Ask the question, with fields of the body changed or added."""
    return httpx.post(f"{base_url}/v1/chat/completions", json={**BODY, **body}, headers=headers, timeout=30)


def leave(gateway: Gateway) -> None:
    """Begin to read a stream and go away."""
    with httpx.stream("POST", f"{gateway.url}/chat/completions", json={**BODY, "stream": True}) as response:
        next(response.iter_lines())
    wait_for(lambda: gateway.engine.aborted)


def served(engine: FakeEngine, tokenizer: ChatTokenizer, observed: ObservabilityConfig | None = None) -> FastAPI:
    """A gateway over one engine."""
    return create_app(Models([ServedModel(MODEL, engine, tokenizer)]), observed=observed)
