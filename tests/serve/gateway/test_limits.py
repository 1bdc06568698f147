"""How much one key may ask for."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from support.running_gateway import MODEL, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.limits.call import Call
from trillion_serve.gateway.limits.rates import KeyRates
from trillion_serve.gateway.security.front import FrontSettings
from trillion_serve.gateway.security.keys import ApiKey, Keyring, digest_of, new_secret
from trillion_serve.gateway.security.limits import RequestLimits

SECRET, FREE = new_secret(), new_secret()
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}]}


@contextmanager
def limited(
    tokenizer: ChatTokenizer, engine: dict[str, Any] | None = None, server: RequestLimits | None = None, **limits: int
) -> Iterator[Gateway]:
    """A gateway with a key that has limits and one that has none."""
    keys = [ApiKey("limited", digest_of(SECRET), **limits), ApiKey("free", digest_of(FREE))]
    front = FrontSettings(Keyring(keys), limits=server or RequestLimits())
    with run_gateway(tokenizer, front=front, **(engine or {})) as running:
        yield running


def ask(gateway: Gateway, secret: str = SECRET, **fields: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.post(f"{gateway.url}/chat/completions", json={**BODY, **fields}, headers=headers, timeout=30)


def wait_for(condition: Callable[[], object]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 10
        time.sleep(0.005)


def test_requests_a_minute(tokenizer: ChatTokenizer) -> None:
    with limited(tokenizer, requests_per_minute=3) as gateway:
        answers = [ask(gateway) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
        assert all(float(answer.headers["x-ratelimit-reset-requests"].rstrip("s")) <= 60 for answer in answers)
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        error = answers[-1].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert ask(gateway, FREE).status_code == 200
        assert "x-ratelimit-limit-requests" not in ask(gateway, FREE).headers


def test_the_real_client_sees_a_rate_limit_error(tokenizer: ChatTokenizer) -> None:
    with limited(tokenizer, requests_per_minute=1) as gateway:
        client = gateway.client.with_options(api_key=SECRET)
        client.chat.completions.create(**BODY)  # type: ignore[call-overload]
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**BODY)  # type: ignore[call-overload]


def test_looking_at_models_is_free(tokenizer: ChatTokenizer) -> None:
    with limited(tokenizer, requests_per_minute=1) as gateway:
        for _ in range(3):
            headers = {"Authorization": f"Bearer {SECRET}"}
            assert httpx.get(f"{gateway.url}/models", headers=headers).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answers", [1, 3])
def test_tokens_a_minute_are_those_of_the_usage(tokenizer: ChatTokenizer, stream: bool, answers: int) -> None:
    with limited(tokenizer, tokens_per_minute=2000) as gateway:
        usage = ask(gateway, FREE, n=answers).json()["usage"]
        ask(gateway, stream=stream, n=answers)
        left = 2000 - usage["total_tokens"]
        # The next request tells what is left with its own prompt taken on.
        told = ask(gateway, stream=True).headers["x-ratelimit-remaining-tokens"]
        assert int(told) == left - usage["prompt_tokens"]


def test_an_answer_that_is_continued_counts_its_prompt_once(tokenizer: ChatTokenizer) -> None:
    with limited(tokenizer, tokens_per_minute=2000) as gateway:
        ask(gateway, thinking_token_budget=3)
        assert len(gateway.requests) == 2
        prompt, continued = (len(request.prompt_token_ids) for request in gateway.requests)
        second = len(tokenizer.encode(gateway.reply)) + 1
        told = ask(gateway, stream=True).headers["x-ratelimit-remaining-tokens"]
        # The whole first prompt, what was written and forced before the second, and what followed it.
        assert int(told) == 2000 - continued - second - prompt


def test_a_prompt_with_more_tokens_than_are_left_waits_for_the_window(tokenizer: ChatTokenizer) -> None:
    with limited(tokenizer, tokens_per_minute=60) as gateway:
        assert ask(gateway).status_code == 200
        answers = [ask(gateway, stream=stream) for stream in (False, True)]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(answer.headers["retry-after"]) >= 1
        assert len(gateway.requests) == 1


def test_a_prompt_that_no_minute_could_hold_is_a_400(tokenizer: ChatTokenizer) -> None:
    with limited(tokenizer, tokens_per_minute=5) as gateway:
        answer = ask(gateway)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "prompt_too_long")


@pytest.mark.parametrize("stream", [False, True])
def test_requests_under_way_at_once(tokenizer: ChatTokenizer, stream: bool) -> None:
    with limited(tokenizer, concurrency=2) as gateway:
        gateway.engine.hang()
        waiting = [threading.Thread(target=ask, args=(gateway,), kwargs={"stream": stream}) for _ in range(2)]
        for thread in waiting:
            thread.start()
        wait_for(lambda: len(gateway.engine.running) == 2)
        refused = ask(gateway)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency_exceeded")
        assert refused.headers["retry-after"] == "1"
        gateway.engine.release()
        for thread in waiting:
            thread.join()
        assert ask(gateway).status_code == 200


def test_a_client_that_leaves_gives_its_place_back(tokenizer: ChatTokenizer) -> None:
    with limited(tokenizer, concurrency=1) as gateway:
        gateway.engine.hang()
        headers = {"Authorization": f"Bearer {SECRET}"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/chat/completions", json=BODY, headers=headers, timeout=0.2)
        wait_for(lambda: gateway.engine.aborted)
        gateway.engine.release()
        assert ask(gateway).status_code == 200


def test_the_whole_server_has_a_bound(tokenizer: ChatTokenizer) -> None:
    with limited(tokenizer, server=RequestLimits(requests=1)) as gateway:
        gateway.engine.hang()
        waiting = threading.Thread(target=ask, args=(gateway, FREE))
        waiting.start()
        wait_for(lambda: gateway.engine.running)
        refused = ask(gateway)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert gateway.get("/health").status_code == 200
        gateway.engine.release()
        waiting.join()


@pytest.mark.parametrize("stream", [False, True])
def test_every_prompt_of_a_batch_counts(tokenizer: ChatTokenizer, stream: bool) -> None:
    # Each begins with all of the one before.
    prompts = [[5] * 10, [5] * 100, [5] * 200, [5] * 10]
    with limited(tokenizer, tokens_per_minute=2000) as gateway:
        body = {"model": MODEL, "prompt": prompts, "max_tokens": 2, "stream": stream}
        headers = {"Authorization": f"Bearer {SECRET}"}
        assert httpx.post(f"{gateway.url}/completions", json=body, headers=headers, timeout=30).status_code == 200
        prompt = ask(gateway, FREE).json()["usage"]["prompt_tokens"]
        told = ask(gateway, stream=True).headers["x-ratelimit-remaining-tokens"]
        assert int(told) == 2000 - (10 + 100 + 200) - 4 * 2 - prompt


async def test_the_parts_of_an_answer_count_what_is_new_in_them() -> None:
    key = ApiKey("a", digest_of("a"), tokens_per_minute=1000)
    call = Call(key, KeyRates(), most_prompt_tokens=50)

    async def left() -> int:
        return int((await call.rates.headers(key))["x-ratelimit-remaining-tokens"])

    await call.read((1,) * 40, "answer")
    await call.wrote(20, "answer")
    assert await left() == 1000 - 60
    await call.read((1,) * 40 + (2,) * 20 + (3,) * 5, "answer")  # five were written for the model
    assert await left() == 1000 - 65
    await call.read((4,) * 30, "answer")  # another prompt, whatever it is called
    assert await left() == 1000 - 95
    with pytest.raises(ApiError, match="51 tokens"):
        await call.read((5,) * 51, "answer")


async def test_a_window_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 60_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    rates = KeyRates()
    key = ApiKey("a", digest_of("a"), tokens_per_minute=100)
    await rates.take(key, "tokens", 60)
    await rates.spend(key, "tokens", 1000)  # what was used cannot be refused, and does not outlast its window
    assert (await rates.headers(key))["x-ratelimit-remaining-tokens"] == "0"
    now += 90
    assert (await rates.headers(key))["x-ratelimit-remaining-tokens"] == "50"
    now += 60
    assert (await rates.headers(key))["x-ratelimit-remaining-tokens"] == "100"


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
async def test_a_step_of_the_wall_clock_locks_nobody_out(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    rates = KeyRates()
    key = ApiKey("a", digest_of("a"), requests_per_minute=2)
    for _ in range(2):
        await rates.take(key, "requests", 1)
    now += jump
    for _ in range(2):
        await rates.take(key, "requests", 1)


async def test_many_tokens_cost_no_memory() -> None:
    rates = KeyRates()
    key = ApiKey("a", digest_of("a"), tokens_per_minute=10**9)
    call = Call(key, rates)
    await call.read((1,) * 1000)
    await rates.spend(key, "tokens", 10**8)
    assert (await rates.headers(key))["x-ratelimit-remaining-tokens"] == str(10**9 - 10**8 - 1000)
