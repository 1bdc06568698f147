"""Who may come in, and what is refused before anybody reads it."""

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.running_gateway import CONTENT, MODEL, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.errors import ServeError
from trillion_serve.gateway.security.bodies import is_deeper
from trillion_serve.gateway.security.front import FrontSettings, check_exposure
from trillion_serve.gateway.security.keys import ApiKey, Keyring, digest_of, new_secret
from trillion_serve.gateway.security.limits import RequestLimits

SECRET, OTHER, ADMIN = new_secret(), new_secret(), new_secret()
KEYS = Keyring(
    [
        ApiKey("team-a", digest_of(SECRET)),
        ApiKey("team-b", digest_of(OTHER), models=frozenset({"another"})),
    ]
)
ADMINS = Keyring([ApiKey("ops", digest_of(ADMIN), admin=True)])
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}]}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def locked(tokenizer: ChatTokenizer) -> Iterator[Gateway]:
    """A gateway with keys, whose metrics are not public."""
    with run_gateway(tokenizer, front=FrontSettings(KEYS, ADMINS, metrics_public=False)) as running:
        yield running


def ask(gateway: Gateway, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{gateway.url}/chat/completions", json=BODY, headers=headers, timeout=30)


def get(gateway: Gateway, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(gateway.url.removesuffix("/v1") + path, headers=headers, timeout=30)


@pytest.mark.parametrize(
    "headers",
    [
        bearer(SECRET),
        {"Authorization": f"bearer {SECRET}"},
        {"x-api-key": SECRET},
        {"X-API-Key": SECRET, "Authorization": "Basic abc"},
    ],
)
def test_a_known_key_opens_the_api(locked: Gateway, headers: dict[str, str]) -> None:
    assert ask(locked, headers).json()["choices"][0]["message"]["content"] == CONTENT


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer"}, "missing_api_key"),
        ({"Authorization": f"Basic {SECRET}"}, "missing_api_key"),
        (bearer("wrong"), "invalid_api_key"),
        (bearer(SECRET[:-1]), "invalid_api_key"),
        (bearer(digest_of(SECRET)), "invalid_api_key"),
        (bearer(ADMIN), "invalid_api_key"),
        (bearer("\xff"), "invalid_api_key"),
    ],
)
def test_anything_else_does_not(locked: Gateway, headers: dict[str, str], code: str) -> None:
    answer = httpx.post(
        f"{locked.url}/chat/completions",
        json=BODY,
        headers={name: value.encode("latin-1") for name, value in headers.items()},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.requests == []


def test_the_real_client_sees_an_authentication_error(locked: Gateway) -> None:
    with pytest.raises(openai.AuthenticationError):
        locked.client.models.list()


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_checks_need_no_key(locked: Gateway, path: str) -> None:
    assert get(locked, path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/openapi.json", "/nowhere", "/v1/../health/x", "/metrics/", "//metrics"]
)
def test_everything_else_does_even_if_it_is_not_there(locked: Gateway, path: str) -> None:
    assert get(locked, path).status_code == 401


@pytest.mark.parametrize(("headers", "opens"), [({}, False), (bearer(SECRET), True), (bearer(ADMIN), True)])
def test_metrics_that_are_not_public_need_any_key(locked: Gateway, headers: dict[str, str], opens: bool) -> None:
    assert (get(locked, "/metrics", headers).status_code != 401) is opens


@pytest.mark.parametrize(
    ("secret", "status"), [("wrong", 401), (SECRET, 401), (ADMIN, 404)], ids=["wrong", "a user's", "the admin's"]
)
def test_user_keys_do_not_open_the_admin_api(locked: Gateway, secret: str, status: int) -> None:
    # This application has no admin API: 404 is what lies behind the door.
    assert get(locked, "/admin/models", bearer(secret)).status_code == status


def test_without_an_admin_key_there_is_no_admin_api(gateway: Gateway) -> None:
    answer = gateway.get("/admin/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "admin_off")


def test_without_keys_all_may_come_in(gateway: Gateway) -> None:
    assert ask(gateway, {}).status_code == ask(gateway, bearer("anything")).status_code == 200


def test_a_key_sees_and_uses_its_models_only(locked: Gateway) -> None:
    assert [card["id"] for card in get(locked, "/v1/models", bearer(SECRET)).json()["data"]] == [MODEL]
    assert get(locked, "/v1/models", bearer(OTHER)).json()["data"] == []
    answers = [ask(locked, bearer(OTHER)), get(locked, f"/v1/models/{MODEL}", bearer(OTHER))]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "only none" in answer.json()["error"]["message"]


def test_every_key_is_compared_whichever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(one: str, other: str) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    for secret, name in ((SECRET, "team-a"), (OTHER, "team-b"), ("none", None)):
        compared.clear()
        found = KEYS.find(secret)
        assert (found.name if found else None) == name
        assert compared == [digest_of(SECRET), digest_of(OTHER)]


def test_secrets_are_never_logged_or_shown(tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    front = FrontSettings(KEYS, ADMINS)
    with run_gateway(tokenizer, front=front) as gateway:
        ask(gateway, bearer(SECRET))
        ask(gateway, bearer(SECRET + "x"))
        get(gateway, "/admin/models", bearer(ADMIN))
        gateway.engine.kill()
        ask(gateway, bearer(SECRET))
    shown = caplog.text + repr(front) + repr(list(KEYS)) + str(KEYS)
    assert caplog.text
    for secret in (SECRET, ADMIN):
        assert secret not in shown
        assert digest_of(secret) not in shown


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gateway.example", ""])
def test_other_machines_are_let_in_without_keys_only_on_purpose(host: str) -> None:
    with pytest.raises(ServeError, match="--insecure") as refused:
        check_exposure(host, Keyring(), insecure=False)
    assert "\n" not in str(refused.value)
    check_exposure(host, Keyring(), insecure=True)
    check_exposure(host, KEYS, insecure=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    check_exposure(host, Keyring(), insecure=False)


SMALL = RequestLimits(body_bytes=1000, body_seconds=0.5, depth=8, messages=3, prompt_tokens=40)


@pytest.fixture
def small(tokenizer: ChatTokenizer) -> Iterator[Gateway]:
    """A gateway that takes little."""
    with run_gateway(tokenizer, front=FrontSettings(limits=SMALL)) as running:
        yield running


def send(gateway: Gateway, body: bytes | Iterator[bytes]) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return httpx.post(f"{gateway.url}/chat/completions", content=body, headers=headers, timeout=10)


def padded(size: int) -> bytes:
    """A request of exactly so many bytes."""
    body = json.dumps(BODY).encode()
    return body + b" " * (size - len(body))


def test_a_body_of_the_largest_size_is_taken_and_a_larger_one_is_not(small: Gateway) -> None:
    assert send(small, padded(1000)).status_code == 200
    answer = send(small, padded(1001))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert len(small.requests) == 1


def test_a_body_that_does_not_tell_its_size_is_counted_as_it_comes(small: Gateway) -> None:
    assert send(small, iter([padded(600), b" " * 400])).status_code == 200
    assert send(small, iter([padded(600), b" " * 401])).status_code == 413


def test_a_body_that_never_ends_is_refused_and_not_kept(small: Gateway) -> None:
    host, port = small.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b"400\r\n" + b" " * 0x400 + b"\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_dawdles_is_refused(small: Gateway) -> None:
    host, port = small.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert sock.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("metadata", "[[[[[[[]]]]]]]", 200),
        ("metadata", "[[[[[[[[]]]]]]]]", 400),
        ("metadata", '{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":1}}}}}}}}', 400),
        ("user", json.dumps("[" * 100 + '\\"' + "{" * 100), 200),
    ],
)
def test_nesting_is_bounded_and_brackets_in_strings_are_none(
    small: Gateway, field: str, value: str, status: int
) -> None:
    body = json.dumps(BODY)[:-1] + f', "{field}": {value}}}'
    answer = send(small, body.encode())
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["code"] == "too_deep"


JSON: Any = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\a가', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='[]{}"\\a', max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.booleans())
def test_depth_is_that_of_the_parsed_document(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    depth = depth_of(value)
    assert not is_deeper(body, depth)
    assert depth == 0 or is_deeper(body, depth - 1)


@pytest.mark.parametrize("body", [b'"' * 100_001, b'"' + b"\\" * 1_000_000, b'"\\"' * 300_000, b"]" * 1_000_000])
def test_bodies_that_are_no_json_are_read_once_and_not_again(body: bytes) -> None:
    assert not is_deeper(body, 8)


def test_messages_are_counted(small: Gateway) -> None:
    turn = {"role": "user", "content": "x"}
    assert small.post(messages=[turn] * 3).status_code == 200
    answer = small.post(messages=[turn] * 4)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_items")
    assert answer.json()["error"]["param"] == "messages"


@pytest.mark.parametrize("body", [b"x", b"\xff", b"[1]", b""])
def test_a_body_that_is_not_json_is_a_400(small: Gateway, body: bytes) -> None:
    answer = httpx.post(f"{small.url}/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "json"])
def test_what_is_not_sent_as_json_is_a_415(small: Gateway, path: str, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = httpx.post(f"{small.url}/{path}", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.api+json"])
def test_other_names_of_json_are_taken(small: Gateway, kind: str) -> None:
    body = {"model": small.post().json()["model"], "messages": [{"role": "user", "content": "둘은?"}]}
    answer = httpx.post(f"{small.url}/chat/completions", content=json.dumps(body), headers={"Content-Type": kind})
    assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_bounded(small: Gateway, stream: bool) -> None:
    assert small.post(stream=stream).status_code == 200
    answer = small.post(messages=[{"role": "user", "content": "둘은? " * 20}], stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "prompt_too_long")
    assert len(small.requests) == 1
