"""Thinking under the client's control, over a real socket: every dialect, budgets, loops, and what comes back."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest

from support.running_gateway import MODEL, Gateway, run_gateway
from trillion_serve.chat.thinking import EffortBudgets, ThinkingSettings, ThinkingWish, Transitions
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import Loop, ScriptedReply
from trillion_serve.engines.protocol import GenerateRequest
from trillion_serve.gateway.schema.chat_request import ChatCompletionRequest

THOUGHT, ANSWER = "둘이다.\n\n그래서 둘.", "답: 2."
OFF: list[dict[str, Any]] = [
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"chat_template_kwargs": {"thinking_budget": 0}},
    {"enable_thinking": False},
    {"thinking_budget": 0},
    {"thinking_token_budget": 0},
    {"reasoning_effort": "none"},
    {"reasoning": {"effort": "none"}},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"max_tokens": 0}},
    {"thinking": {"type": "disabled"}},
    {"thinking": {"budget_tokens": 0}},
]
BUDGETS: list[dict[str, Any]] = [
    {"chat_template_kwargs": {"thinking_budget": 6}},
    {"thinking_budget": 6},
    {"thinking_token_budget": 6},
    {"reasoning": {"max_tokens": 6}},
    {"thinking": {"type": "enabled", "budget_tokens": 6}},
    {"reasoning_effort": "low"},
    {"reasoning": {"effort": "low", "summary": "auto"}},
]
CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"enable_thinking": True, "reasoning_effort": "none"}, "enable_thinking", "reasoning_effort"),
    ({"enable_thinking": False, "thinking_budget": 10}, "enable_thinking", "thinking_budget"),
    (
        {"chat_template_kwargs": {"enable_thinking": True, "thinking": False}},
        "chat_template_kwargs.enable_thinking",
        "chat_template_kwargs.thinking",
    ),
    ({"thinking": {"type": "disabled", "budget_tokens": 10}}, "thinking.type", "thinking.budget_tokens"),
    ({"reasoning": {"enabled": True, "max_tokens": 0}}, "reasoning.enabled", "reasoning.max_tokens"),
    ({"thinking_budget": 5, "thinking_token_budget": 6}, "thinking_budget", "thinking_token_budget"),
    ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning_effort", "reasoning.effort"),
    ({"include_reasoning": True, "reasoning": {"exclude": True}}, "include_reasoning", "reasoning.exclude"),
    ({"separate_reasoning": True, "reasoning_format": "raw"}, "reasoning_format", "separate_reasoning"),
    ({"include_reasoning": False, "separate_reasoning": False}, "include_reasoning", "separate_reasoning"),
]


class Mind:
    """What the model behind the gateway says: ``thought`` in an open think block, ``answer`` behind a closed one."""

    def __init__(self, tokenizer: ChatTokenizer, gateway: Gateway) -> None:
        self._tokenizer = tokenizer
        self._gateway = gateway
        self.thought: str | Iterable[int] = f"{THOUGHT}\n</think>\n\n{ANSWER}<|END|>"
        self.answer: str | Iterable[int] = f"{ANSWER}<|END|>"

    def __call__(self, request: GenerateRequest) -> Iterable[int]:
        """The reply to a request of the gateway's."""
        self._gateway.requests.append(request)
        texts = {"<think>\n": self.thought, "</think>\n\n": self.answer}
        encode = self._tokenizer.encode
        script = {tuple(encode(end)): encode(text) if isinstance(text, str) else text for end, text in texts.items()}
        return ScriptedReply(script)(request)


SETTINGS = ThinkingSettings(efforts=EffortBudgets(low=6), transitions=Transitions(ko="그만.", en="Enough."))


@pytest.fixture(params=[1, 7])
def thinking(tokenizer: ChatTokenizer, request: pytest.FixtureRequest) -> Iterator[tuple[Gateway, Mind]]:
    """A gateway whose model has a mind, and that mind; the engine gives so many tokens at a time."""
    with run_gateway(tokenizer, thinking=SETTINGS, chunk=request.param) as gateway:
        mind = Mind(tokenizer, gateway)
        gateway.engine._reply = mind
        yield gateway, mind


def ask(gateway: Gateway, question: str = "둘은?", **options: Any) -> dict[str, Any]:
    """The one choice of an answer, which must be the same streamed; its usage goes with it."""
    body = {"messages": [{"role": "user", "content": question}], **options}
    answer = gateway.post(**body).json()
    assert "error" not in answer, answer
    choice = {**answer["choices"][0], "usage": without_cache(answer["usage"])}
    assert streamed(gateway, **body) == choice
    return choice


def without_cache(usage: dict[str, Any]) -> dict[str, Any]:
    """Usage but for what an earlier request left in the cache."""
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


def streamed(gateway: Gateway, **body: Any) -> dict[str, Any]:
    """What a stream adds up to, in the form of a choice that is not streamed."""
    body = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, **body}
    message: dict[str, Any] = {}
    choice: dict[str, Any] = {"index": 0, "message": message}
    with httpx.stream("POST", f"{gateway.url}/chat/completions", json=body, timeout=30) as response:
        for line in response.iter_lines():
            if not line or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "usage" in chunk:
                choice["usage"] = without_cache(chunk["usage"])
                continue
            (piece,) = chunk["choices"]
            fields = {name for name, text in piece["delta"].items() if text and name != "role"}
            assert fields in (set(), {"content"}, {"reasoning", "reasoning_content"})
            for name, text in piece["delta"].items():
                message[name] = message.get(name, "") + text
            choice |= {name: piece[name] for name in ("finish_reason", "interventions") if name in piece}
    return choice


@pytest.mark.parametrize("off", OFF)
def test_thinking_off_gives_no_reasoning_in_any_dialect(thinking: tuple[Gateway, Mind], off: dict[str, Any]) -> None:
    gateway, _ = thinking
    choice = ask(gateway, **off)
    assert choice["message"] == {"role": "assistant", "content": ANSWER}
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert "interventions" not in choice


def test_thinking_comes_back_under_both_names(thinking: tuple[Gateway, Mind], tokenizer: ChatTokenizer) -> None:
    gateway, _ = thinking
    choice = ask(gateway)
    expected = {"role": "assistant", "content": ANSWER, "reasoning": THOUGHT, "reasoning_content": THOUGHT}
    assert choice["message"] == expected
    reasoning = len(tokenizer.encode(f"{THOUGHT}\n</think>"))
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": reasoning}
    message = gateway.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "둘은?"}], reasoning_effort="high"
    )
    assert message.choices[0].message.reasoning_content == THOUGHT  # type: ignore[attr-defined]


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_holds_in_any_dialect(
    thinking: tuple[Gateway, Mind], tokenizer: ChatTokenizer, budget: dict[str, Any]
) -> None:
    gateway, mind = thinking
    thought = tokenizer.encode("one two three four five")
    mind.thought = Loop(thought)
    choice = ask(gateway, **budget)
    written = tokenizer.backend.decode(thought[:6], skip_special_tokens=False)
    assert choice["message"]["reasoning"] == f"{written}\n\n그만."
    assert choice["message"]["content"] == ANSWER
    assert choice["interventions"] == ["thinking_budget"]
    assert choice["finish_reason"] == "stop"
    forced = len(tokenizer.encode("\n\n그만.\n</think>"))
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": 6 + forced}


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("둘은?", "그만."),
        ("PyTorch에서 tensor를 어떻게 reshape 하나요?", "그만."),
        ("What is two?", "Enough."),
        ("Translate '안녕하세요' into English, please.", "Enough."),
        ("2 + 2 = ?", "Enough."),
    ],
)
def test_the_sentence_is_in_the_users_language(
    thinking: tuple[Gateway, Mind], tokenizer: ChatTokenizer, question: str, sentence: str
) -> None:
    gateway, mind = thinking
    mind.thought = Loop(tokenizer.encode("fox "))
    assert ask(gateway, question, thinking_budget=4)["message"]["reasoning"].endswith(f"\n\n{sentence}")


def test_a_small_limit_and_a_great_budget_leave_an_answer(
    thinking: tuple[Gateway, Mind], tokenizer: ChatTokenizer
) -> None:
    gateway, mind = thinking
    mind.thought = Loop(tokenizer.encode("fox "))
    mind.answer = Loop(tokenizer.encode("답 "))
    choice = ask(gateway, max_tokens=64, thinking_token_budget=1000)
    assert choice["message"]["content"].startswith("답 답")
    assert choice["message"]["reasoning"]
    assert (choice["finish_reason"], choice["usage"]["completion_tokens"]) == ("length", 64)


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 9])
def test_where_there_is_no_room_to_think_the_answer_begins_at_once(
    thinking: tuple[Gateway, Mind], tokenizer: ChatTokenizer, max_tokens: int
) -> None:
    gateway, mind = thinking
    mind.answer = Loop(tokenizer.encode("x"))
    choice = ask(gateway, max_tokens=max_tokens, reasoning_effort="high")
    assert choice["message"] == {"role": "assistant", "content": "x" * max_tokens}


def test_a_context_that_is_nearly_full_holds_both_prompts(tokenizer: ChatTokenizer) -> None:
    with run_gateway(tokenizer, context_length=48) as gateway:
        gateway.engine._reply = Mind(tokenizer, gateway)
        size = len(ask(gateway)["message"]["content"])
        assert size
        for words in range(1, 48):
            answer = gateway.post(messages=[{"role": "user", "content": "a" * words}])
            if answer.status_code != 200:
                assert answer.json()["error"]["code"] == "context_length_exceeded"
                break
            assert answer.json()["choices"][0]["message"]["content"], (words, answer.json())


def test_a_loop_in_the_reasoning_still_gives_an_answer(
    thinking: tuple[Gateway, Mind], tokenizer: ChatTokenizer
) -> None:
    gateway, mind = thinking
    mind.thought = Loop(tokenizer.encode("Wait, no. "), tokenizer.encode("Two. "))
    choice = ask(gateway)
    assert choice["message"]["content"] == ANSWER
    assert (choice["finish_reason"], choice["interventions"]) == ("stop", ["reasoning_loop"])
    choice = ask(gateway, repetition_detection=False, max_tokens=1000)
    assert choice["interventions"] == ["thinking_budget"]


def test_a_loop_in_the_answer_stops_it(thinking: tuple[Gateway, Mind], tokenizer: ChatTokenizer) -> None:
    gateway, mind = thinking
    mind.answer = Loop(tokenizer.encode("fox "))
    choice = ask(gateway, enable_thinking=False)
    assert (choice["finish_reason"], choice["interventions"]) == ("stop", ["content_loop"])
    assert 1024 <= choice["usage"]["completion_tokens"] < 1100
    choice = ask(gateway, enable_thinking=False, repetition_detection=False, max_tokens=1500)
    assert (choice["finish_reason"], choice["usage"]["completion_tokens"]) == ("length", 1500)


@pytest.mark.parametrize("thought", [f"{THOUGHT}<|END|>", f"{THOUGHT}\n</think>\n\n<|END|>"])
def test_an_answer_is_never_empty(thinking: tuple[Gateway, Mind], thought: str) -> None:
    gateway, mind = thinking
    mind.thought, mind.answer = thought, "<|END|>"
    choice = ask(gateway)
    assert choice["message"]["content"] == "그래서 둘."
    assert choice["interventions"] == ["empty_answer"]


@pytest.mark.parametrize(
    ("fields", "reasoning", "content"),
    [
        ({"include_reasoning": False}, None, ANSWER),
        ({"reasoning": {"exclude": True}}, None, ANSWER),
        ({"reasoning_format": "hidden"}, None, ANSWER),
        ({"include_reasoning": True}, THOUGHT, ANSWER),
        ({"separate_reasoning": True, "stream_reasoning": True}, THOUGHT, ANSWER),
        ({"reasoning_format": "parsed"}, THOUGHT, ANSWER),
        ({"stream_reasoning": False}, THOUGHT, ANSWER),
        ({"separate_reasoning": False}, None, f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"),
        ({"reasoning_format": "raw"}, None, f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"),
        ({"separate_reasoning": False, "stream_reasoning": False}, None, f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"),
    ],
)
def test_what_is_sent_of_the_reasoning(
    thinking: tuple[Gateway, Mind],
    tokenizer: ChatTokenizer,
    fields: dict[str, Any],
    reasoning: str | None,
    content: str,
) -> None:
    gateway, _ = thinking
    choice = ask(gateway, **fields)
    message = choice["message"]
    assert (message.get("reasoning"), message.get("reasoning_content")) == (reasoning, reasoning)
    assert message["content"] == content
    tokens = len(tokenizer.encode(f"{THOUGHT}\n</think>"))
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": tokens}


@pytest.mark.parametrize(("fields", "one", "other"), CONTRADICTIONS)
def test_a_contradiction_names_both_fields(gateway: Gateway, fields: dict[str, Any], one: str, other: str) -> None:
    answer = gateway.post(**fields)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["code"]) == ("invalid_request_error", "contradiction")
    assert error["param"] in (one, other)
    assert one in error["message"]
    assert other in error["message"]


@pytest.mark.parametrize(
    ("fields", "wish"),
    [
        ({}, ThinkingWish()),
        ({"enable_thinking": True, "reasoning_effort": "high"}, ThinkingWish(on=True, effort="high")),
        ({"reasoning_effort": "high", "thinking_budget": 50}, ThinkingWish(on=True, effort="high", budget=50)),
        ({"thinking": {"type": "adaptive"}}, ThinkingWish(on=True)),
        ({"thinking_token_budget": -1}, ThinkingWish()),
        ({"enable_thinking": False, "thinking_token_budget": -1}, ThinkingWish(on=False)),
        ({"reasoning": {"summary": "auto"}}, ThinkingWish()),
        ({"repetition_detection": False}, ThinkingWish(loops=False)),
        (dict.fromkeys(["reasoning", "thinking", "enable_thinking", "chat_template_kwargs"]), ThinkingWish()),
    ],
)
def test_fields_that_agree_make_one_wish(fields: dict[str, Any], wish: ThinkingWish) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    assert ChatCompletionRequest.model_validate(body).wish == wish


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"thinking_budget": -2}, "thinking_budget"),
        ({"thinking_budget": 1.5}, "thinking_budget"),
        ({"thinking": {"type": "perhaps"}}, "thinking.type"),
        ({"reasoning": {"max_tokens": "many"}}, "reasoning.max_tokens"),
        ({"enable_thinking": "no"}, "enable_thinking"),
        ({"repetition_detection": {"max_pattern_size": 3}}, "repetition_detection"),
    ],
)
def test_a_value_that_is_none_is_refused(gateway: Gateway, fields: dict[str, Any], param: str) -> None:
    error = gateway.post(**fields).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("settings", "wish", "thinks", "budget"),
    [
        (ThinkingSettings(), ThinkingWish(), None, None),
        (ThinkingSettings(on=False, budget=7), ThinkingWish(), False, 7),
        (ThinkingSettings(on=False, budget=7), ThinkingWish(on=True), True, 7),
        (ThinkingSettings(budget=7), ThinkingWish(on=True, effort="low"), True, 1024),
        (ThinkingSettings(budget=7), ThinkingWish(on=True, effort="max"), True, None),
        (ThinkingSettings(budget=7), ThinkingWish(on=True, effort="low", budget=9), True, 9),
    ],
)
def test_the_server_decides_what_a_wish_leaves_open(
    settings: ThinkingSettings, wish: ThinkingWish, thinks: bool | None, budget: int | None
) -> None:
    assert (settings.thinks(wish), settings.budget_for(wish)) == (thinks, budget)


def test_with_tools_the_template_decides(thinking: tuple[Gateway, Mind]) -> None:
    gateway, _ = thinking
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert ask(gateway, tools=tools, enable_thinking=True)["message"] == {"role": "assistant", "content": ANSWER}


@pytest.mark.parametrize(
    "echo",
    [
        {"content": ANSWER, "reasoning": "s3cret"},
        {"content": ANSWER, "reasoning_content": "s3cret"},
        {"content": f"<think>\ns3cret\n</think>\n\n{ANSWER}"},
        {"content": f"s3cret\n</think>\n\n{ANSWER}"},
        {"content": [{"type": "text", "text": f"<think>s3cret</think>{ANSWER}"}]},
    ],
)
def test_past_reasoning_does_not_come_back(thinking: tuple[Gateway, Mind], echo: dict[str, Any]) -> None:
    gateway, _ = thinking
    turns = [{"role": "user", "content": "둘은?"}, {"role": "assistant", **echo}, {"role": "user", "content": "셋은?"}]
    plain = [*turns[:1], {"role": "assistant", "content": ANSWER}, turns[2]]
    gateway.post(messages=turns)
    gateway.post(messages=plain)
    assert gateway.requests[0].prompt_token_ids == gateway.requests[1].prompt_token_ids


def test_each_of_several_answers_is_limited_on_its_own(
    thinking: tuple[Gateway, Mind], tokenizer: ChatTokenizer
) -> None:
    gateway, mind = thinking
    mind.thought = Loop(tokenizer.encode("fox "))
    answer = gateway.post(n=3, seed=5, thinking_budget=4).json()
    assert [choice["interventions"] for choice in answer["choices"]] == [["thinking_budget"]] * 3
    assert len({choice["message"]["reasoning"] for choice in answer["choices"]}) == 1
    assert sorted(request.sampling.seed or 0 for request in gateway.requests) == [5, 5, 6, 6, 7, 7]
    assert len({request.request_id for request in gateway.requests}) == 6


def test_json_after_reasoning_is_left_to_the_grammar(thinking: tuple[Gateway, Mind]) -> None:
    gateway, mind = thinking
    mind.thought, mind.answer = f"{THOUGHT}\n</think>", '{"a": 1}<|END|>'
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    choice = ask(gateway, response_format=form)
    assert choice["message"]["reasoning"] == THOUGHT
    assert json.loads(choice["message"]["content"]) == {"a": 1}
    grammars = [request.sampling.grammar for request in gateway.requests[:2]]
    assert grammars[0] is None
    assert grammars[1] is not None
    assert json.loads(grammars[1].value) == schema
