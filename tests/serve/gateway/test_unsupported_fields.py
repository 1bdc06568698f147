"""Fields that clients know and this server does not: refused by name where they ask for something, else taken."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.running_gateway import MODEL, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.gateway.schema.unsupported import UnsupportedFields

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}]},
    "/v1/completions": {"model": MODEL, "prompt": "둘은?"},
    "/v1/responses": {"model": MODEL, "input": "둘은?"},
    "/tokenize": {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}]},
}
GENERATES = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
CHAT, COMPLETIONS, RESPONSES, TOKENIZE = BODIES
NOTHING: list[Any] = [False, "", [], {}]

# What asks for something, and what asks for nothing, wherever texts are generated.
EVERYWHERE: dict[str, tuple[Any, list[Any]]] = {
    "best_of": (2, [1]),
    "suffix": ("end", NOTHING),
    "verbosity": ("low", ["medium"]),
    "service_tier": ("flex", ["auto", "default"]),
    "modalities": (["audio"], [[], ["text"]]),
    "audio": ({"voice": "alloy"}, NOTHING),
    "prediction": ({"type": "content", "content": "x"}, NOTHING),
    "web_search_options": ({}, []),
    "functions": ([{"name": "f"}], NOTHING),
    "function_call": ("auto", ["none"]),
    "use_beam_search": (True, NOTHING),
    "length_penalty": (1.2, [1, 1.0]),
    "bad_words": (["a"], NOTHING),
    "allowed_token_ids": ([5], NOTHING),
    "logits_processors": (["x"], NOTHING),
    "custom_logit_processor": ("x", NOTHING),
    "min_new_tokens": (3, [0]),
    "stop_regex": ("a+", NOTHING),
    "lora_path": ("x", NOTHING),
    "vllm_xargs": ({"a": 1}, NOTHING),
    "documents": ([{"text": "x"}], NOTHING),
    "chat_template": ("x", NOTHING),
    "chat_template_content_format": ("openai", ["auto", "string"]),
    "add_generation_prompt": (False, [True]),
    "continue_final_message": (True, NOTHING),
    "truncate_prompt_tokens": (5, []),
    "mm_processor_kwargs": ({"a": 1}, NOTHING),
    "prompt_logprobs": (0, NOTHING),
    "include_stop_str_in_output": (True, NOTHING),
    "no_stop_trim": (True, NOTHING),
    "spaces_between_special_tokens": ("x", [False, True]),
    "return_token_ids": (True, NOTHING),
    "return_hidden_states": (True, NOTHING),
    "priority": (1, [0]),
    "cache_salt": ("x", NOTHING),
    "kv_transfer_params": ({"a": 1}, NOTHING),
    "structural_tag": ("x", NOTHING),
    "guided_decoding_backend": ("xgrammar", NOTHING),
    "guided_whitespace_pattern": ("x", NOTHING),
}
# Those that one endpoint takes and another does not.
SOMEWHERE: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    CHAT: {
        "store": (True, [False]),
        "echo": (True, [False]),
        "add_special_tokens": (True, [False]),
        "skip_special_tokens": (False, [True]),
        "return_tokens_as_token_ids": (True, [False]),
    },
    COMPLETIONS: {
        "store": (True, [False]),
        "tools": ([{"type": "function", "function": {"name": "f"}}], NOTHING),
        "messages": ([{"role": "user", "content": "x"}], NOTHING),
        "prompt_embeds": ("x", NOTHING),
        "response_format": ({"type": "json_object"}, [{"type": "text"}]),
        "structured_outputs": ({"regex": "a"}, NOTHING),
        "guided_json": ({"type": "object"}, NOTHING),
        "json_schema": ('{"type": "object"}', NOTHING),
        "regex": ("a+", NOTHING),
        "ebnf": ("root ::= [a]", NOTHING),
        "reasoning_effort": ("low", ["none"]),
        "reasoning": ({"effort": "low"}, NOTHING),
        "thinking": ({"type": "enabled"}, NOTHING),
        "thinking_token_budget": (5, NOTHING),
        "enable_thinking": (True, [False]),
        "chat_template_kwargs": ({"thinking": True}, NOTHING),
    },
    RESPONSES: {
        "echo": (True, [False]),
        "skip_special_tokens": (False, [True]),
        "background": (True, [False]),
        "truncation": ("auto", ["disabled"]),
        "n": (2, [1]),
        "max_tokens": (5, NOTHING),
        "messages": ([{"role": "user", "content": "x"}], NOTHING),
        "response_format": ({"type": "json_object"}, [{"type": "text"}]),
        "include": (["message.output_text.logprobs"], NOTHING),
        "logprobs": (True, NOTHING),
        "top_logprobs": (2, [0]),
        "max_tool_calls": (2, NOTHING),
        "conversation": ("conv_1", NOTHING),
        "prompt": ({"id": "x"}, NOTHING),
    },
    TOKENIZE: {
        "continue_final_message": (True, NOTHING),
        "chat_template": ("x", NOTHING),
        "documents": ([{"text": "x"}], NOTHING),
        "mm_processor_kwargs": ({"a": 1}, NOTHING),
    },
}
# Within the objects that a field holds.
WITHIN: list[tuple[str, str, str, Any, list[Any]]] = [
    (CHAT, "stream_options", "continuous_usage_stats", True, [False]),
    (CHAT, "stream_options", "include_obfuscation", True, [False]),
    (COMPLETIONS, "stream_options", "continuous_usage_stats", True, [False]),
    (RESPONSES, "stream_options", "include_obfuscation", True, [False]),
    (RESPONSES, "reasoning", "summary", "detailed", ["auto"]),
    (RESPONSES, "reasoning", "generate_summary", "concise", ["auto"]),
    (RESPONSES, "text", "verbosity", "low", ["medium"]),
]
CASES = [
    *((path, {name: asks}, name) for path in GENERATES for name, (asks, _) in EVERYWHERE.items()),
    *((path, {name: asks}, name) for path, fields in SOMEWHERE.items() for name, (asks, _) in fields.items()),
    *((path, {field: {name: asks}}, f"{field}.{name}") for path, field, name, asks, _ in WITHIN),
]


@pytest.fixture(scope="module")
def gateway(tokenizer: ChatTokenizer) -> Iterator[Gateway]:
    """One for the whole file: nothing here changes it."""
    with run_gateway(tokenizer) as running:
        yield running


def post(gateway: Gateway, path: str, **fields: Any) -> httpx.Response:
    stream = {"stream": True} if "stream_options" in fields else {}
    return httpx.post(gateway.url.removesuffix("/v1") + path, json={**BODIES[path], **stream, **fields}, timeout=30)


@pytest.mark.parametrize(("path", "fields", "param"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_a_field_that_asks_for_something_is_refused_by_name(
    gateway: Gateway, path: str, fields: dict[str, Any], param: str
) -> None:
    answer = post(gateway, path, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_field")


@pytest.mark.parametrize("path", BODIES)
def test_what_asks_for_nothing_is_taken(gateway: Gateway, path: str) -> None:
    """All at once: any one that was refused would show."""
    neutral = {**(EVERYWHERE if path in GENERATES else {}), **SOMEWHERE[path]}
    within = [case for case in WITHIN if case[0] == path]
    for turn in range(len(NOTHING)):
        fields: dict[str, Any] = {name: values[turn % len(values)] for name, (_, values) in neutral.items() if values}
        for _, field, name, _, values in within:
            if field not in neutral:
                fields.setdefault(field, {})[name] = values[turn % len(values)]
        answer = post(gateway, path, **fields)
        assert answer.status_code == 200, answer.text
    answer = post(gateway, path, **dict.fromkeys(neutral))
    assert answer.status_code == 200, answer.text


def test_every_field_is_tried_here_and_written_down() -> None:
    tried = EVERYWHERE.keys() | SOMEWHERE[CHAT].keys()
    assert set(UnsupportedFields.model_fields) == tried
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in sorted(tried) if f"`{name}`" not in page] == []


def test_true_is_not_the_number_one(gateway: Gateway) -> None:
    error = post(gateway, CHAT, best_of=True).json()["error"]
    assert (error["param"], error["code"]) == ("best_of", "unsupported_field")
    assert error["message"] == "best_of: this server supports nothing but 1 here"
