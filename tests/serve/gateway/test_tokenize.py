"""``/tokenize`` and ``/detokenize`` over a real socket."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.running_gateway import MODEL, Gateway
from trillion_serve.chat.render import render
from trillion_serve.chat.tokenizer import ChatTokenizer

MESSAGES: Any = [{"role": "user", "content": "둘은?<|END|>"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def post(gateway: Gateway, path: str, **body: Any) -> httpx.Response:
    return httpx.post(gateway.url.removesuffix("/v1") + path, json=body, timeout=30)


def tokens(gateway: Gateway, **body: Any) -> list[int]:
    answer = post(gateway, "/tokenize", **body)
    assert answer.status_code == 200, answer.text
    return answer.json()["tokens"]


def test_a_text(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode("안녕 <|END|>")
    assert ids[-1] == tokenizer.end_ids[0]
    assert post(gateway, "/tokenize", model=MODEL, prompt="안녕 <|END|>").json() == {
        "count": len(ids),
        "max_model_len": 4096,
        "tokens": ids,
    }
    assert tokens(gateway, prompt="") == []


def test_nulls_are_no_errors(gateway: Gateway) -> None:
    names = "messages tools model add_special_tokens add_generation_prompt chat_template"
    assert tokens(gateway, prompt="a", **dict.fromkeys(names.split())) == tokens(gateway, prompt="a")


def test_token_strings_are_the_vocabulary_s_own(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    answer = post(gateway, "/tokenize", prompt="the 뷁", return_token_strs=True).json()
    assert answer["token_strs"] == [tokenizer.backend.id_to_token(token) for token in answer["tokens"]]
    assert "<0xEB>" in answer["token_strs"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [TOOL]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False, "other": 1}},
    ],
)
def test_a_conversation_is_what_the_chat_endpoint_sends_to_the_engine(gateway: Gateway, fields: dict[str, Any]) -> None:
    gateway.reply = "답"
    gateway.post(messages=MESSAGES, **fields)
    assert tokens(gateway, messages=MESSAGES, **fields) == list(gateway.requests[0].prompt_token_ids)


def test_without_a_generation_prompt_it_ends_with_the_last_message(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    whole, part = tokens(gateway, messages=MESSAGES), tokens(gateway, messages=MESSAGES, add_generation_prompt=False)
    assert whole[: len(part)] == part
    assert "assistant" in tokenizer.backend.decode(whole[len(part) :])
    assert tuple(part) == render(tokenizer, MESSAGES, add_generation_prompt=False).token_ids


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_detokenize_takes_tokenize_back(gateway: Gateway, text: str) -> None:
    answer = post(gateway, "/detokenize", tokens=tokens(gateway, prompt=text), model=MODEL)
    assert answer.json() == {"prompt": text}


def test_detokenize_shows_control_tokens(gateway: Gateway) -> None:
    text = "<|START|><think>\n음"
    assert post(gateway, "/detokenize", tokens=tokens(gateway, prompt=text)).json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("/tokenize", {}, 400, "prompt", "contradiction"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "messages", "contradiction"),
        ("/tokenize", {"prompt": 1}, 400, "prompt", "invalid_value"),
        ("/tokenize", {"messages": []}, 400, "messages", "invalid_value"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, 400, "add_special_tokens", "contradiction"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model", "model_not_found"),
        ("/detokenize", {}, 400, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": [1, -1]}, 400, "tokens[1]", "invalid_value"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens[0]", "invalid_value"),
        ("/detokenize", {"tokens": [1, 10**9]}, 400, "tokens", "invalid_value"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    gateway: Gateway, path: str, body: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    answer = post(gateway, path, **body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
