"""``/v1/chat/completions`` through the real client over a real socket."""

import json
from typing import Any

import pytest

from support.running_gateway import CONTENT, MODEL, REASONING, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer

MESSAGES: Any = [{"role": "user", "content": "둘은?"}]


def create(gateway: Gateway, **options: Any) -> Any:
    return gateway.client.chat.completions.create(model=MODEL, messages=MESSAGES, **options)


def streamed(gateway: Gateway, **options: Any) -> dict[int, dict[str, Any]]:
    """What a stream adds up to, by choice."""
    answers: dict[int, dict[str, Any]] = {}
    for chunk in create(gateway, stream=True, **options):
        for choice in chunk.choices:
            answer = answers.setdefault(
                choice.index, {"content": "", "reasoning": "", "reasoning_content": "", "finish_reason": None}
            )
            for name in ("content", "reasoning", "reasoning_content"):
                answer[name] += getattr(choice.delta, name, None) or ""
            answer["finish_reason"] = choice.finish_reason or answer["finish_reason"]
    return answers


def test_an_answer_has_its_reasoning_under_both_names(gateway: Gateway) -> None:
    answer = create(gateway)
    message = answer.choices[0].message
    assert message.content == CONTENT
    assert message.reasoning == message.reasoning_content == REASONING
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", MODEL)


@pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 3}, {"chunk": 1000}], indirect=True)
@pytest.mark.parametrize("options", [{}, {"n": 3, "seed": 5}, {"stop": [". "]}, {"max_tokens": 24}])
def test_a_stream_adds_up_to_the_answer(gateway: Gateway, options: dict[str, Any]) -> None:
    whole = {
        choice.index: {
            "content": choice.message.content,
            "reasoning": choice.message.reasoning,
            "reasoning_content": choice.message.reasoning_content,
            "finish_reason": choice.finish_reason,
        }
        for choice in create(gateway, temperature=0, **options).choices
    }
    assert streamed(gateway, temperature=0, **options) == whole


@pytest.mark.parametrize(
    "extra",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"reasoning_effort": "none"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
def test_without_thinking_there_is_no_reasoning_at_all(gateway: Gateway, extra: dict[str, Any]) -> None:
    gateway.reply = CONTENT
    answer = gateway.post(**extra).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": CONTENT}
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_tool_choice_none_keeps_the_tools_from_the_model(gateway: Gateway) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    gateway.post(tools=tools, tool_choice="none")
    gateway.post()
    assert gateway.requests[0].prompt_token_ids == gateway.requests[1].prompt_token_ids


def test_usage_counts_every_token_once(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    usage = create(gateway, n=2).usage
    reasoning = len(tokenizer.encode(f"{REASONING}\n</think>"))
    completion = len(tokenizer.encode(gateway.reply)) + 1
    assert usage.prompt_tokens == len(gateway.requests[0].prompt_token_ids)
    assert usage.completion_tokens == 2 * completion
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == 2 * reasoning
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert create(gateway).usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_usage_comes_last_in_a_stream_that_asks_for_it(gateway: Gateway) -> None:
    chunks = list(create(gateway, stream=True, stream_options={"include_usage": True}))
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == create(gateway).usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )


@pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 1000}], indirect=True)
def test_a_stop_string_counts_the_tokens_up_to_it(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    answer = create(gateway, stop=". ")
    assert answer.choices[0].message.content == "답: 2"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < len(tokenizer.encode(gateway.reply))
    assert gateway.engine.running == set()


def test_the_token_limit_ends_the_answer(gateway: Gateway) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = create(gateway, **{name: 4})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 4


def test_logprobs_hold_every_token_but_the_end(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    entries = create(gateway, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    expected = tokenizer.encode(gateway.reply)
    assert [entry.token for entry in entries] == [tokenizer.token_text(token) for token in expected]
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert spelt(entries) == gateway.reply
    chunks = list(create(gateway, stream=True, logprobs=True, top_logprobs=2))
    found = [e for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert found == entries


def spelt(entries: list[Any]) -> str:
    """What the bytes of log-probabilities spell."""
    return bytes(byte for entry in entries for byte in entry.bytes).decode()


@pytest.mark.parametrize("name", ["tokenizer", "byte_level_tokenizer"])
def test_the_bytes_of_logprobs_spell_the_answer(name: str, request: pytest.FixtureRequest) -> None:
    with run_gateway(request.getfixturevalue(name)) as gateway:
        gateway.reply = "뷁 녕 🙂 the fox"
        answer = create(gateway, logprobs=True, top_logprobs=1, reasoning_effort="none").choices[0]
    entries = answer.logprobs.content
    assert spelt(entries) == answer.message.content == gateway.reply
    assert [entry.bytes for entry in entries[:3]] == [[0xEB], [0xB7], [0x81]]
    assert all(entry.top_logprobs[0].bytes == entry.bytes for entry in entries)


@pytest.mark.parametrize("opened", ["by the prompt", "by the model"])
@pytest.mark.parametrize(
    ("name", "chunk"), [("tokenizer", 1), ("text_tags_tokenizer", 1), ("text_tags_tokenizer", 1000)]
)
def test_reasoning_that_is_not_sent_has_no_logprobs(
    name: str, opened: str, chunk: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = request.getfixturevalue(name)
    with run_gateway(tokenizer, chunk=chunk) as gateway:
        if opened == "by the model":
            monkeypatch.setattr(tokenizer._tokenizer, "chat_template", "{{ messages[-1].content }}\n")
            gateway.reply = f"<think>\n{gateway.reply}"
        for hidden in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}, {"reasoning_format": "hidden"}):
            (choice,) = create(gateway, logprobs=True, extra_body=hidden).choices
            assert spelt(choice.logprobs.content) == f"\n\n{CONTENT}"
        chunks = create(gateway, stream=True, logprobs=True, extra_body={"include_reasoning": False})
        given = [c.choices[0].logprobs for c in chunks if c.choices]
        assert spelt([entry for each in given if each for entry in each.content]) == f"\n\n{CONTENT}"
        (choice,) = create(gateway, logprobs=True).choices
        assert spelt(choice.logprobs.content) == gateway.reply


def test_an_answer_without_reasoning_keeps_its_first_logprobs(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", "{{ messages[-1].content }}\n")
    with run_gateway(tokenizer, chunk=1) as gateway:
        gateway.reply = f"\n {CONTENT}"
        chunks = list(create(gateway, stream=True, logprobs=True, extra_body={"include_reasoning": False}))
    given = [c.choices[0].logprobs for c in chunks if c.choices]
    assert spelt([entry for each in given if each for entry in each.content]) == gateway.reply


def test_sampling_reaches_the_engine(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    gateway.post(temperature=0, top_p=0.9, top_k=-1, min_p=0.1, presence_penalty=1, seed=3, n=2, logit_bias={"5": 2})
    first, second = sorted((r.sampling for r in gateway.requests), key=lambda s: s.seed or 0)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.0, 0.9, 0, 0.1)
    assert (first.presence_penalty, first.logit_bias) == (1.0, {5: 2.0})
    assert (first.seed, second.seed) == (3, 4)
    assert first.stop_token_ids == tokenizer.end_ids


def test_what_a_request_leaves_out_comes_from_the_model(gateway: Gateway) -> None:
    gateway.post()
    sampling = gateway.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.25, 0.5, 7)
    assert sampling.max_tokens == 4096 - len(gateway.requests[0].prompt_token_ids)


def test_echoed_reasoning_does_not_reach_the_model(gateway: Gateway) -> None:
    question = MESSAGES[0]
    for echo in ({"content": "응"}, {"content": "응", "reasoning": "비밀"}, {"content": "<think>비밀</think>\n\n응"}):
        gateway.post(messages=[question, {"role": "assistant", **echo}, question])
    assert len({request.prompt_token_ids for request in gateway.requests}) == 1
    gateway.requests.clear()
    for content in ("", "<think>\n비밀, 토큰이 모자라"):
        gateway.post(messages=[question, {"role": "assistant", "content": content}, question])
    assert len({request.prompt_token_ids for request in gateway.requests}) == 1


def test_a_refusal_is_told_to_the_model_as_text(gateway: Gateway) -> None:
    question, text = MESSAGES[0], "그건 안 됩니다."
    for content in (text, [{"type": "text", "text": text}], [{"type": "refusal", "refusal": text}]):
        gateway.post(messages=[question, {"role": "assistant", "content": content}, question])
    assert len({request.prompt_token_ids for request in gateway.requests}) == 1


def test_a_model_may_open_the_think_block_itself(
    gateway: Gateway, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", "{{ messages[-1].content }}\n")
    gateway.reply = f"<think>\n{REASONING}\n</think>\n\n{CONTENT}"
    message = create(gateway).choices[0].message
    assert (message.reasoning, message.content) == (REASONING, CONTENT)


def test_fields_are_omitted_rather_than_null(gateway: Gateway) -> None:
    answer = gateway.post().json()
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert set(answer["choices"][0]) == {"index", "message", "finish_reason"}
    lines = gateway.post(stream=True).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert events[0]["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": None,
    }
    assert all(None not in event["choices"][0]["delta"].values() for event in events)


def test_models(gateway: Gateway) -> None:
    (card,) = gateway.client.models.list().data
    assert card.id == gateway.client.models.retrieve(MODEL).id == MODEL
    assert card.max_model_len == 4096
