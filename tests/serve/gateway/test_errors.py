"""Every error has the shape that OpenAI clients read, and names the field."""

from typing import Any

import httpx
import openai
import pytest

from support.running_gateway import MODEL, Gateway

USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_value"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, None, "contradiction"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, None, "contradiction"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, None, "contradiction"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"thinking": True}}, "reasoning_effort", "contradiction"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"thinking_token_budget": "ten"}, "thinking_token_budget", "invalid_value"),
        ({"functions": []}, "functions", "unsupported_field"),
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "messages", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "x" * 9000}], "stream": True},
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    gateway: Gateway, body: dict[str, Any], param: str | None, code: str
) -> None:
    answer = gateway.post(**body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"]


def test_contradicting_switches_are_both_named(gateway: Gateway) -> None:
    body = {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}
    message = gateway.post(**body).json()["error"]["message"]
    assert "reasoning_effort" in message
    assert "chat_template_kwargs.enable_thinking" in message


@pytest.mark.parametrize("body", [{"functions": None}, {"anything": 1}, {"user": "me", "metadata": {"a": "b"}}])
def test_nulls_and_unknown_fields_are_no_errors(gateway: Gateway, body: dict[str, Any]) -> None:
    assert gateway.post(**body).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"\xff", b'"x"'])
def test_a_body_that_is_no_request(gateway: Gateway, body: bytes) -> None:
    answer = httpx.post(f"{gateway.url}/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_not_found(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.client.chat.completions.create(model="other", messages=[USER])  # type: ignore[list-item]
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert MODEL in caught.value.message


@pytest.mark.parametrize(
    ("path", "status"), [("/nowhere", 404), ("/v1/models/other", 404), ("/v1/chat/completions", 405)]
)
def test_paths_and_methods(gateway: Gateway, path: str, status: int) -> None:
    answer = gateway.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_health_and_readiness_follow_the_engine(gateway: Gateway) -> None:
    assert gateway.get("/health").json() == {"status": "ok"}
    assert gateway.get("/ready").json() == {"status": "ready"}
    gateway.engine.kill()
    for path in ("/health", "/ready"):
        answer = gateway.get(path)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_is_a_503_before_the_first_byte(gateway: Gateway, stream: bool) -> None:
    gateway.engine.kill()
    answer = gateway.post(stream=stream)
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("gateway", [{"interval": 0.05}], indirect=True)
def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error(gateway: Gateway) -> None:
    stream = gateway.client.chat.completions.create(model=MODEL, messages=[USER], stream=True)  # type: ignore[list-item]
    next(stream)
    gateway.engine.kill()
    with pytest.raises(openai.APIError, match="stopped"):
        list(stream)


def test_an_engine_that_ends_a_request_early_is_an_error(gateway: Gateway) -> None:
    original = gateway.engine.generate

    async def aborting(request: Any) -> Any:
        async for delta in original(request):
            yield delta
            await gateway.engine.abort(request.request_id)

    gateway.engine.generate = aborting  # type: ignore[method-assign]
    answer = gateway.post()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "engine_error"
