"""Request ids of real requests over a real socket."""

import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from support.observed import ask, root
from support.running_gateway import Gateway
from trillion_serve.engines.protocol import GenerateRequest
from trillion_serve.gateway.observability.request_id import request_id_of


@pytest.mark.parametrize("given", ["abc", "a-b_c.d:e@f/g=h+0", "x" * 128])
def test_a_sane_id_of_the_clients_comes_back(gateway: Gateway, given: str) -> None:
    assert ask(root(gateway), {"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "{}", "a,b"])
def test_any_other_id_is_replaced(gateway: Gateway, given: str) -> None:
    first, second = (ask(root(gateway), {"x-request-id": given}).headers["x-request-id"] for _ in range(2))
    assert first != second
    assert len(first) == len(second) == 32
    assert given not in (first, second)


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_an_id_is_sane_whatever_is_sent(sent: str) -> None:
    chosen = request_id_of(Headers(raw=[(b"x-request-id", sent.encode("latin-1"))]))
    assert re.fullmatch(r"[!-~]{1,128}", chosen)
    assert not set(chosen) & set("\"'{},;<>\\")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404),
        ("/nowhere", b"{}", 404),
        ("/health", b"", 405),
    ],
)
def test_errors_carry_the_id_too(gateway: Gateway, path: str, body: bytes, status: int) -> None:
    headers = {"x-request-id": "mine", "content-type": "application/json"}
    answer = httpx.post(root(gateway) + path, content=body, headers=headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")


def test_an_error_that_nobody_expected_carries_the_id(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(asked: GenerateRequest) -> list[int]:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(gateway.engine, "_reply", broken)
    for stream in (False, True):
        answer = ask(root(gateway), {"x-request-id": "mine"}, stream=stream)
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text


def test_a_stream_carries_the_id_and_so_does_the_engines_request(gateway: Gateway) -> None:
    answer = ask(root(gateway), {"x-request-id": "mine"}, stream=True, n=2)
    assert answer.headers["x-request-id"] == "mine"
    ids = [request.request_id for request in gateway.requests]
    assert len(set(ids)) == 2
    assert all(".mine" in each for each in ids)
