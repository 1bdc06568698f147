"""Health checks as probes and load balancers make them."""

import httpx
import pytest

from support.running_gateway import Gateway


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_head_answers_as_get_does_without_a_body(gateway: Gateway, path: str) -> None:
    asked, told = gateway.get(path), httpx.head(gateway.url.removesuffix("/v1") + path)
    assert (told.status_code, told.content) == (200, b"")
    assert told.headers["content-length"] == str(len(asked.content))
    assert told.headers["content-type"] == asked.headers["content-type"]


def test_a_gateway_that_drains_lives_but_is_not_ready(gateway: Gateway) -> None:
    gateway.server.config.app.state.draining = True
    assert gateway.get("/health").status_code == 200
    assert httpx.head(gateway.url.removesuffix("/v1") + "/ready").status_code == 503
    assert gateway.get("/ready").json() == {"status": "draining"}
