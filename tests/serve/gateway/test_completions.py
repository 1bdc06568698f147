"""``/v1/completions`` through the real client over a real socket."""

import json
import math
from typing import Any

import httpx
import openai
import pytest

from support.running_gateway import MODEL, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer

PROMPT = "하나, 둘,"
TEXT = " 셋. 넷 and more\n"
HALF = math.log(0.5)


@pytest.fixture(autouse=True)
def says_the_text(gateway: Gateway) -> None:
    gateway.reply = TEXT


def create(gateway: Gateway, **options: Any) -> Any:
    options = {"prompt": PROMPT, "max_tokens": 100, **options}
    return gateway.client.completions.create(model=MODEL, **options)


def post(gateway: Gateway, **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/completions", json={"model": MODEL, "prompt": PROMPT, **body}, timeout=30)


def streamed(gateway: Gateway, **options: Any) -> dict[int, dict[str, Any]]:
    """What a stream adds up to, by choice."""
    texts: dict[int, dict[str, Any]] = {}
    for chunk in create(gateway, stream=True, **options):
        for choice in chunk.choices:
            text = texts.setdefault(choice.index, {"text": "", "finish_reason": None, "logprobs": None})
            text["text"] += choice.text
            text["finish_reason"] = choice.finish_reason or text["finish_reason"]
            if choice.logprobs:
                text["logprobs"] = text["logprobs"] or {name: [] for name in dict(choice.logprobs)}
                for name, entries in choice.logprobs:
                    text["logprobs"][name] += entries
    return texts


def test_a_prompt_is_continued_as_it_is(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    completion = create(gateway)
    assert completion.object == "text_completion"
    assert completion.model == MODEL
    (choice,) = completion.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, TEXT, "stop", None)
    assert list(gateway.requests[0].prompt_token_ids) == tokenizer.encode(PROMPT)


@pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 3}, {"chunk": 1000}], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3, "seed": 5},
        {"stop": [". "]},
        {"stop": ["more\n", "d m"], "logprobs": 0},
        {"max_tokens": 5, "logprobs": 2},
        {"echo": True},
        {"echo": True, "logprobs": 2, "prompt": [PROMPT, "일"], "n": 2},
        {"echo": True, "logprobs": 1, "max_tokens": 0, "prompt": ["일", PROMPT]},
    ],
)
def test_a_stream_adds_up_to_the_text(gateway: Gateway, options: dict[str, Any]) -> None:
    whole = {
        choice.index: {
            "text": choice.text,
            "finish_reason": choice.finish_reason,
            "logprobs": choice.logprobs and dict(choice.logprobs),
        }
        for choice in create(gateway, **options).choices
    }
    assert streamed(gateway, **options) == whole


def test_a_batch_has_one_text_for_each_prompt_times_n_in_order(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    prompts = ["하나", "둘", "셋"]
    completion = create(gateway, prompt=prompts, n=2, seed=7, echo=True)
    assert [choice.index for choice in completion.choices] == list(range(6))
    assert [choice.text for choice in completion.choices] == [
        f"{prompt}{TEXT} ({seed})" for prompt in prompts for seed in (7, 8)
    ]
    assert completion.usage.prompt_tokens == sum(len(tokenizer.encode(prompt)) for prompt in prompts)


def test_a_prompt_that_comes_twice_counts_twice(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    usage = create(gateway, prompt=[PROMPT, PROMPT]).usage
    answer = len(tokenizer.encode(TEXT)) + 1
    assert usage.prompt_tokens == 2 * len(tokenizer.encode(PROMPT))
    assert usage.completion_tokens == 2 * answer
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_all_four_forms_of_a_prompt_reach_the_engine_alike(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    for prompt in (PROMPT, [PROMPT], ids, [ids]):
        create(gateway, prompt=prompt)
    assert {request.prompt_token_ids for request in gateway.requests} == {tuple(ids)}


def test_special_tokens_in_a_prompt_count_as_such(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    create(gateway, prompt="<|START|><|role_start|>user<|role_end|>")
    assert list(gateway.requests[0].prompt_token_ids) == tokenizer.encode("<|START|><|role_start|>user<|role_end|>")


def test_sixteen_tokens_unless_the_request_says(gateway: Gateway) -> None:
    gateway.reply = TEXT * 9
    completion = create(gateway, max_tokens=None)
    assert completion.usage.completion_tokens == 16
    assert completion.choices[0].finish_reason == "length"


@pytest.mark.parametrize("gateway", [{"context_length": 20}], indirect=True)
def test_fewer_where_the_context_has_no_room(gateway: Gateway) -> None:
    gateway.reply = TEXT * 9
    completion = create(gateway, max_tokens=None, prompt=[5] * 12)
    assert completion.usage.completion_tokens == 8


def test_sampling_and_seeds_reach_the_engine(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    create(gateway, temperature=0, top_p=0.9, seed=3, n=2, logit_bias={"5": 2}, extra_body={"top_k": -1})
    first, second = (request.sampling for request in gateway.requests)
    assert (first.temperature, first.top_p, first.top_k, first.logit_bias) == (0.0, 0.9, 0, {5: 2.0})
    assert (first.seed, second.seed) == (3, 4)
    assert first.stop_token_ids == tokenizer.end_ids
    create(gateway)
    assert gateway.requests[-1].sampling.temperature == 0.25


@pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 1000}], indirect=True)
def test_a_stop_string_ends_the_text_and_counts_the_tokens_up_to_it(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    completion = create(gateway, stop=". ")
    assert completion.choices[0].text == " 셋"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens < len(tokenizer.encode(TEXT))
    assert gateway.engine.running == set()


def test_think_tags_are_text_and_other_special_tokens_are_hidden(gateway: Gateway) -> None:
    gateway.reply = "<think>음</think>\n<|role_end|>답"
    assert create(gateway).choices[0].text == "<think>음</think>\n답"
    shown = create(gateway, extra_body={"skip_special_tokens": False})
    assert shown.choices[0].text == gateway.reply
    hidden = create(gateway, extra_body={"skip_special_tokens": True})
    assert hidden.choices[0].text == "음\n답"


def test_logprobs_have_every_token_the_end_too(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    logprobs = create(gateway, logprobs=2).choices[0].logprobs
    ids = [*tokenizer.encode(TEXT), tokenizer.end_ids[0]]
    assert logprobs.tokens == [tokenizer.token_text(token) for token in ids]
    assert logprobs.token_logprobs == [HALF] * len(ids)
    named = create(gateway, logprobs=2, extra_body={"return_tokens_as_token_ids": True}).choices[0].logprobs
    assert named.tokens == [f"token_id:{token}" for token in ids]
    assert named.top_logprobs == [{f"token_id:{token}": HALF, f"token_id:{token + 1}": HALF - 1} for token in ids]
    chosen_only = create(gateway, logprobs=0).choices[0].logprobs
    assert chosen_only.top_logprobs == [{token: HALF} for token in logprobs.tokens]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_offsets_cut_the_text_into_its_tokens(
    gateway: Gateway, tokenizer: ChatTokenizer, echo: bool, as_ids: bool
) -> None:
    prompt: Any = tokenizer.encode(PROMPT) if as_ids else PROMPT
    choice = create(gateway, prompt=prompt, echo=echo, logprobs=0).choices[0]
    assert choice.text == (PROMPT if echo else "") + TEXT
    offsets = choice.logprobs.text_offset
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert offsets[-1] == len(choice.text)
    cut = [choice.text[a:b] for a, b in zip(offsets, [*offsets[1:], len(choice.text)], strict=True)]
    for piece, token in zip(cut, choice.logprobs.tokens, strict=True):
        assert piece == token or "\ufffd" in token or token == "<|END|>"


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_and_logprobs_score_a_prompt(gateway: Gateway, tokenizer: ChatTokenizer, max_tokens: int) -> None:
    """What lm-evaluation-harness asks, and how it reads the answer."""
    ids = tokenizer.encode(PROMPT)
    completion = create(gateway, prompt=[ids, ids[:3]], echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
    for choice, prompt in zip(completion.choices, [ids, ids[:3]], strict=True):
        assert choice.finish_reason == "length"
        assert len(choice.logprobs.tokens) == len(prompt) + max_tokens
        assert choice.logprobs.token_logprobs == [None] + [HALF] * (len(prompt) - 1 + max_tokens)
        assert choice.logprobs.top_logprobs[0] is None
        for logprob, top in zip(choice.logprobs.token_logprobs[1:], choice.logprobs.top_logprobs[1:], strict=True):
            assert max(top.values()) == logprob
    assert len(gateway.requests) == 2 * max_tokens
    assert completion.usage.completion_tokens == 2 * max_tokens


def test_usage_comes_last_in_a_stream_that_asks_for_it(gateway: Gateway) -> None:
    chunks = list(create(gateway, stream=True, stream_options={"include_usage": True}))
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == create(gateway).usage.completion_tokens


def test_a_tokenizer_that_begins_every_text_with_a_token_does_so_once(
    gateway: Gateway, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, processors

    start = tokenizer.backend.token_to_id("<|START|>")
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.post_processor = processors.TemplateProcessing(single="<|START|> $A", special_tokens=[("<|START|>", start)])
    monkeypatch.setattr(tokenizer, "backend", backend)
    ids = tokenizer.encode(PROMPT)
    for prompt, add, expected in [
        (PROMPT, None, [start, *ids]),
        (PROMPT, True, [start, *ids]),
        (PROMPT, False, ids),
        (f"<|START|>{PROMPT}", None, [start, *ids]),
        (f"<|START|>{PROMPT}", True, [start, start, *ids]),
    ]:
        create(gateway, prompt=prompt, extra_body={"add_special_tokens": add})
        assert list(gateway.requests[-1].prompt_token_ids) == expected


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
        ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1, -1]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1, 10**9]}, "prompt", "invalid_value"),
        ({"prompt": [[1], [10**9]]}, "prompt[1]", "invalid_value"),
        ({"prompt": {"text": "a"}}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 600, "n": 2}, "n", "invalid_value"),
        ({"prompt": ["a"] * 1025, "n": 1}, "prompt", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "contradiction"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        ({"prompt": "x" * 9000}, "prompt", "context_length_exceeded"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    gateway: Gateway, body: dict[str, Any], param: str | None, code: str
) -> None:
    answer = post(gateway, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert gateway.requests == []


def test_nulls_and_unknown_fields_are_no_errors(gateway: Gateway) -> None:
    nulls = dict.fromkeys(["stop", "suffix", "logprobs", "echo", "n", "seed", "temperature", "logit_bias", "best_of"])
    answer = post(gateway, **nulls, user="me", anything=1)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 1}])
def test_a_dead_engine_is_a_503_before_the_first_byte(gateway: Gateway, stream: bool, options: dict[str, Any]) -> None:
    gateway.engine.kill()
    with pytest.raises(openai.InternalServerError) as caught:
        list(create(gateway, stream=stream, **options))
    assert (caught.value.status_code, caught.value.code) == (503, "engine_dead")


def test_a_client_that_leaves_aborts_every_text(tokenizer: ChatTokenizer) -> None:
    with run_gateway(tokenizer, interval=0.05) as gateway:
        gateway.reply = TEXT * 20
        body = {"model": MODEL, "prompt": [PROMPT] * 3, "max_tokens": 100, "stream": True}
        with httpx.stream("POST", f"{gateway.url}/completions", json=body) as response:
            assert json.loads(next(response.iter_lines()).removeprefix("data: "))["object"] == "text_completion"
    assert len(gateway.engine.aborted) == 3
