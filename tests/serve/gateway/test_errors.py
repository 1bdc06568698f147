"""Every error has the shape that OpenAI clients read, and names the field."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import ValidationError

from support.running_gateway import MODEL, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.gateway.schema.chat_request import ChatCompletionRequest

USER = {"role": "user", "content": "x"}


@pytest.fixture(scope="module")
def steady(tokenizer: ChatTokenizer) -> Iterator[Gateway]:
    """One gateway for all the tests that only ask."""
    with run_gateway(tokenizer) as running:
        yield running


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_value"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "contradiction"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "contradiction"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": [5] * 1025}, "stop_token_ids", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "contradiction"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"thinking": True}}, "reasoning_effort", "contradiction"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "unsupported_field"),
        ({"guided_json": '{"$schema": "\\ud800"}'}, "guided_json", "invalid_value"),
        ({"guided_json": "[" * 3000}, "guided_json", "invalid_value"),
        ({"thinking_token_budget": "ten"}, "thinking_token_budget", "invalid_value"),
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
    steady: Gateway, body: dict[str, Any], param: str | None, code: str
) -> None:
    answer = steady.post(**body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"]


def test_contradicting_switches_are_both_named(gateway: Gateway) -> None:
    body = {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}
    message = gateway.post(**body).json()["error"]["message"]
    assert "reasoning_effort" in message
    assert "chat_template_kwargs.enable_thinking" in message


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_k": 2**70}, "top_k"),
        ({"min_tokens": 2**31}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop_token_ids": [5, 10**9]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [2**70]}, "stop_token_ids"),
        ({"logit_bias": {str(10**9): 1}}, "logit_bias"),
        ({"logit_bias": {str(2**70): 1}}, "logit_bias"),
    ],
)
def test_numbers_that_an_engine_would_fail_on(steady: Gateway, path: str, fields: dict[str, Any], param: str) -> None:
    said = {"/chat/completions": {"messages": [USER]}, "/completions": {"prompt": "x"}, "/responses": {"input": "x"}}
    asked = len(steady.requests)
    answer = httpx.post(steady.url + path, json={"model": MODEL, **said[path], **fields}, timeout=30)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, "invalid_value")
    assert len(steady.requests) == asked


def test_a_part_that_is_no_text_is_named(steady: Gateway) -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    error = steady.post(messages=[{"role": "user", "content": parts}]).json()["error"]
    assert (error["param"], error["code"]) == ("messages[0].content", "unsupported_field")
    assert error["message"] == "messages[0].content: only text parts are taken; part 1 is image_url"


def test_of_many_bad_messages_the_first_is_told_and_no_other(steady: Gateway) -> None:
    answer = steady.post(messages=[{"role": "wizard", "content": "x"}] * 4000)
    assert answer.json()["error"]["param"] == "messages[0].role"
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate({"model": MODEL, "messages": [{"role": "wizard"}] * 4000})
    assert caught.value.error_count() == 1


HALF = "\ud800 hi"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": HALF}]}, "messages[0].content"),
        ("/v1/chat/completions", {"messages": [USER], "user": HALF}, "user"),
        ("/v1/chat/completions", {"messages": [USER], "stream": True, "stop": ["a", HALF]}, "stop[1]"),
        ("/v1/chat/completions", {"messages": [USER], "anything": [{"a": {HALF: 1}}]}, "anything[0].a"),
        ("/v1/completions", {"prompt": ["a", HALF]}, "prompt[1]"),
        ("/v1/responses", {"input": HALF}, "input"),
        ("/v1/responses", {"input": "x", "stream": True, "metadata": {"a": HALF}}, "metadata.a"),
        ("/tokenize", {"prompt": HALF}, "prompt"),
        (
            "/tokenize",
            {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", "description": HALF}}]},
            "tools[0].function.description",
        ),
    ],
)
def test_half_a_surrogate_pair_is_no_text(steady: Gateway, path: str, body: dict[str, Any], param: str) -> None:
    answer = post_raw(steady, path, json.dumps({"model": MODEL, **body}).encode())
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value")


@pytest.mark.parametrize("escaped", ["\\ud83d\\ude00", "\\uD83D\\uDE00", "\\\\ud800", "\\ud55c\\uae00"])
def test_whole_pairs_and_other_escapes_are_text(steady: Gateway, escaped: str) -> None:
    answer = post_raw(steady, "/tokenize", b'{"prompt": "%b"}' % escaped.encode())
    assert answer.status_code == 200, answer.text
    ids = answer.json()["tokens"]
    assert httpx.post(steady.url.removesuffix("/v1") + "/detokenize", json={"tokens": ids}).json() == {
        "prompt": json.loads(f'"{escaped}"')
    }


def test_half_a_pair_in_the_json_of_a_past_call_is_told_as_it_is(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    gateway.reply = "답"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    answer = gateway.post(messages=[USER, {"role": "assistant", "content": None, "tool_calls": [call]}, USER])
    assert answer.status_code == 200, answer.text
    assert "ud800" in tokenizer.backend.decode(list(gateway.requests[0].prompt_token_ids))


def post_raw(gateway: Gateway, path: str, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(gateway.url.removesuffix("/v1") + path, content=body, headers=headers, timeout=30)


@pytest.mark.parametrize("body", [{"functions": None}, {"anything": 1}, {"user": "me", "metadata": {"a": "b"}}])
def test_nulls_and_unknown_fields_are_no_errors(steady: Gateway, body: dict[str, Any]) -> None:
    assert steady.post(**body).status_code == 200


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b"\xff", b'"x"', b'{"user": "\xed\xa0\x80"}', b'{"top_k": ' + b"1" * 5000 + b"}"]
)
def test_a_body_that_is_no_request(steady: Gateway, body: bytes) -> None:
    answer = post_raw(steady, "/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_not_found(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.client.chat.completions.create(model="other", messages=[USER])  # type: ignore[list-item]
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert MODEL in caught.value.message


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nowhere", 404, "not_found"),
        ("/v1/models/other", 404, "model_not_found"),
        ("/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
def test_paths_and_methods(steady: Gateway, path: str, status: int, code: str) -> None:
    answer = steady.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == code


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
