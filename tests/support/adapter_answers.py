"""What an engine adapter answers, compared with the model that its server runs."""

from contextlib import aclosing

import pytest
import torch
from tokenizers import Tokenizer

from trillion_serve.engines.protocol import (
    Engine,
    GenerateRequest,
    Grammar,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
)

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["서울", "부산"]}, "name": {"type": "string", "maxLength": 8}},
    "required": ["city", "name"],
    "additionalProperties": False,
}
"""A schema that answers must keep to."""
END = 3
"""The small tokenizer's token that ends an answer."""


async def answer(engine: Engine, request_id: str, prompt: tuple[int, ...], **sampling) -> list[TokenDelta]:
    """All that comes back for a prompt: 12 tokens without chance, unless ``sampling`` says otherwise."""
    params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0} | sampling)
    async with aclosing(engine.generate(GenerateRequest(request_id, prompt, params))) as deltas:
        return [delta async for delta in deltas]


def tokens(deltas: list[TokenDelta]) -> tuple[int, ...]:
    """The new tokens."""
    return sum((delta.token_ids for delta in deltas), ())


async def assert_answers_and_scores_are_the_models(
    engine: Engine, model: torch.nn.Module, prompt: tuple[int, ...]
) -> None:
    """Assert that greedy tokens, their log-probabilities and those of the prompt are what plain PyTorch computes."""
    deltas = await answer(engine, "greedy", prompt, top_logprobs=2)
    assert len(tokens(deltas)) == 12
    assert deltas[-1].finish_reason == "length"
    with torch.no_grad():
        rows = model(torch.tensor([prompt + tokens(deltas)])).logits[0].float().log_softmax(-1)  # (seq, vocab)
    assert tokens(deltas) == tuple(rows[len(prompt) - 1 : -1].argmax(-1).tolist())
    _assert_scores([entry for delta in deltas for entry in delta.logprobs or ()], rows[len(prompt) - 1 : -1])
    _assert_scores(await engine.score(prompt, 2), rows[: len(prompt) - 1])


def _assert_scores(scored: list[TokenLogprob], rows: torch.Tensor) -> None:
    for entry, row in zip(scored, rows, strict=True):
        best = row.topk(2)
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert [logprob for _, logprob in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entry.top[0][0] == best.indices[0].item()


async def assert_a_prompt_is_cached_the_second_time(engine: Engine, prompt: tuple[int, ...]) -> None:
    """Assert that most of a prompt is read from the cache when it comes again."""
    await answer(engine, "warm", prompt)
    again = await answer(engine, "again", prompt)
    assert again[-1].prompt_tokens == len(prompt)
    assert again[-1].cached_tokens >= 128


async def assert_stop_tokens_end_an_answer(engine: Engine, prompt: tuple[int, ...]) -> None:
    """Assert that a stop token ends an answer and comes with it."""
    first = tokens(await answer(engine, "first", prompt))
    stopped = await answer(engine, "stopped", prompt, stop_token_ids=(first[1],))
    assert tokens(stopped) == first[: first.index(first[1]) + 1]
    assert stopped[-1].finish_reason == "stop"


async def text_within(
    engine: Engine,
    grammar: Grammar,
    backend: Tokenizer,
    prompt: tuple[int, ...],
    stop_token_ids: tuple[int, ...],
    seed: int,
) -> str:
    """A random answer's text, which the grammar has ended: with ``END`` if that may stop it, else without."""
    asked = {"max_tokens": 200, "temperature": 1.0, "seed": seed, "stop_token_ids": stop_token_ids}
    deltas = await answer(engine, f"{grammar.kind}{seed}", prompt, grammar=grammar, **asked)
    assert deltas[-1].finish_reason == "stop"
    ended = tokens(deltas)[-1:] == (END,)
    assert ended == (END in stop_token_ids)
    return backend.decode(list(tokens(deltas)[:-1] if ended else tokens(deltas)))
