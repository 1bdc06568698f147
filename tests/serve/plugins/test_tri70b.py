"""Tri-70B in a real vLLM engine, against the plain reference: full masks, no cache, float64."""

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from support import vllm_engines
from support.engine_parity import assert_agrees, assert_as_close_as_plain_pytorch, compare, random_prompts, saved
from support.plan_parity import assert_planned
from support.tiny_tri70b import published_weights, tiny_model
from support.tri70b_reference import reference_logits
from support.vllm_engines import Answer, Options

pytestmark = pytest.mark.engine

WINDOW = 32
NEW_TOKENS = 16
# Around the edges of blocks and the window (both 32), of chunks of a prefill (48), and several windows long.
LENGTHS = [2, 31, 32, 33, 47, 49, 90, 200]


@pytest.fixture(scope="module")
def model():
    """Eight layers, six of them local with a window of 32."""
    return tiny_model(sliding_window=WINDOW)


@pytest.fixture(scope="module")
def reference(model) -> Callable[..., torch.Tensor]:
    return partial(reference_logits, model.config, published_weights(model))


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    return saved(model, tmp_path_factory.mktemp("tri70b"))


@pytest.fixture(scope="module")
def options(checkpoint) -> Options:
    return Options(str(checkpoint), block_size=32)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts(LENGTHS)


@pytest.fixture(scope="module")
def answers(engines, options, prompts) -> list[Answer]:
    """A batch of mixed lengths, longer prompts prefilled in chunks of at most 48 tokens."""
    return engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()


def test_float32_agrees_with_the_reference(reference, prompts, answers):
    assert [len(answer.prompt_logprobs) for answer in answers] == [length - 1 for length in LENGTHS]
    assert {len(answer.tokens) for answer in answers} == {len(answer.logprobs) for answer in answers} == {NEW_TOKENS}
    assert_agrees(reference, prompts, answers)


@pytest.mark.parametrize(
    "wrong",
    [{"window": WINDOW - 1}, {"window": WINDOW + 1}, {"attn_scale": 0.0}],
    ids=["window - 1", "window + 1", "queries not scaled"],
)
def test_a_reference_with_one_thing_wrong_disagrees(reference, prompts, answers, wrong):
    _, distances = compare(partial(reference, **wrong), prompts, answers)
    assert distances.max() > 0.1


def test_bfloat16_is_as_close_as_plain_pytorch_in_bfloat16(engines, model, tmp_path, prompts):
    half = copy.deepcopy(model).to(torch.bfloat16)
    options = Options(str(saved(half, tmp_path)), dtype="bfloat16", block_size=32)
    answers = engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()
    exact = partial(reference_logits, half.config, published_weights(half))
    assert_as_close_as_plain_pytorch(half, exact, prompts, answers, bound=0.06)
    assert engines.submit(vllm_engines.logits_dtype, options).result() == torch.bfloat16


def test_prefixes_read_from_the_cache_change_nothing(engines, options, reference, prompts):
    shared = prompts[-1][:150]
    first, *rest = [shared + tail for tail in ([7, 8, 9], [10], list(range(20, 60)))]
    engines.submit(vllm_engines.run, options, [first], 4, prompt_logprobs=False).result()
    answers = engines.submit(vllm_engines.run, options, [first, *rest], NEW_TOKENS, prompt_logprobs=False).result()
    assert all(answer.cached_tokens >= 128 for answer in answers)
    assert_agrees(reference, [first, *rest], answers)


def test_it_takes_the_memory_that_was_planned(engines, options):
    assert_planned(engines, options)


def test_local_layers_ask_the_engine_for_a_window_and_global_ones_for_everything(engines, options, model):
    groups = engines.submit(vllm_engines.report, options).result().groups
    assert {(group.spec, group.window) for group in groups} == {
        ("SlidingWindowSpec", WINDOW),
        ("FullAttentionSpec", None),
    }
    windowed = {
        int(re.search(r"\d+", name)[0])
        for group in groups
        if group.spec == "SlidingWindowSpec"
        for name in group.layers
    }
    assert windowed == {i for i in range(8) if model.config.is_local(i)}
    assert {group.bytes_per_token for group in groups} == {model.config.cached_numbers * 4}


def test_the_log_says_what_the_cache_holds_and_what_windows_save(engines, options):
    told = engines.submit(vllm_engines.report, options).result()
    local = -(-(WINDOW - 1 + 48) // 32) + 1
    whole = 256 // 32
    assert told.capacity == int(told.blocks / (whole + 3 * local) * 256)
    without = int(told.blocks / (4 * whole) * 256)
    assert told.messages == [
        f"INFO: The KV cache holds {told.capacity:,} tokens at a context of 256: "
        f"{told.capacity / without:.2f} times what it would without windows."
    ]
