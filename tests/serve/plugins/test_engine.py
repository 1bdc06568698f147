"""VAETKI in a real vLLM engine, against the plain reference: full masks, no cache, float64."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from support import vllm_engines
from support.engine_parity import assert_agrees, assert_as_close_as_plain_pytorch, compare, random_prompts, saved
from support.tiny_vaetki import YARN, published_weights, tiny_config, tiny_model
from support.vaetki_reference import reference_logits
from support.vllm_engines import Answer, Options

pytestmark = pytest.mark.engine

WINDOW = 32
NEW_TOKENS = 24
# Around the edges of blocks (16), the window (32), chunks of a prefill (48), and several windows long.
LENGTHS = [2, 15, 16, 17, 31, 32, 33, 47, 49, 90, 130, 200]


@pytest.fixture(scope="module")
def reference(model, weights) -> Callable[..., torch.Tensor]:
    return partial(reference_logits, model.config, weights)


@pytest.fixture(scope="module")
def options(checkpoint) -> Options:
    return Options(str(checkpoint))


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


@pytest.mark.parametrize("wrong", [WINDOW - 1, WINDOW + 1])
def test_a_reference_with_the_window_wrong_by_one_disagrees(reference, prompts, answers, wrong):
    _, distances = compare(partial(reference, window=wrong), prompts, answers)
    assert distances.max() > 1e-2


def test_prefixes_read_from_the_cache_change_nothing(engines, options, reference):
    shared = random_prompts([150], seed=2)[0]
    first, *rest = [shared + tail for tail in random_prompts([5, 1, 20, 40], seed=3)]
    engines.submit(vllm_engines.run, options, [first], 4, prompt_logprobs=False).result()
    answers = engines.submit(vllm_engines.run, options, [first, *rest], NEW_TOKENS, prompt_logprobs=False).result()
    assert all(answer.cached_tokens >= 128 for answer in answers)
    assert_agrees(reference, [first, *rest], answers)


def test_a_seed_gives_the_same_tokens_however_a_prompt_is_cut_into_steps(engines, options):
    long, *others = random_prompts([130, 70, 90], seed=5)
    alone = engines.submit(vllm_engines.sampled, options, [long], NEW_TOKENS, seed=11).result()
    among_others = engines.submit(vllm_engines.sampled, options, [*others, long], NEW_TOKENS, seed=11).result()
    assert among_others[-1] == alone[0]
    assert engines.submit(vllm_engines.sampled, options, [long], NEW_TOKENS, seed=12).result() != alone


def test_preempted_requests_resume_exactly(engines, options, reference):
    tiny = replace(options, kv_cache_mib=6)
    prompts = random_prompts([60] * 8, seed=4)
    answers = engines.submit(vllm_engines.run, tiny, prompts, 60).result()
    assert engines.submit(vllm_engines.preemptions, tiny).result() > 0
    assert_agrees(reference, prompts, answers)


def test_bfloat16_is_as_close_as_plain_pytorch_in_bfloat16(engines, tmp_path, prompts):
    # Heads large enough for the packed products of a CPU.
    half = tiny_model(num_hidden_layers=12, sliding_window=WINDOW, qk_nope_head_dim=32, v_head_dim=32).bfloat16()
    options = Options(str(saved(half, tmp_path)), dtype="bfloat16")
    answers = engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()
    exact = partial(reference_logits, half.config, published_weights(half))
    assert_as_close_as_plain_pytorch(half, exact, prompts, answers, bound=0.06)


@pytest.mark.skipif(torch.cuda.is_available(), reason="interprets kernels, which a GPU runs")
def test_local_layers_agree_with_the_reference_on_a_gpus_path_and_global_ones_have_yarn(engines, tmp_path):
    """Prefill in chunks, prefixes read from the cache, mixed batches; the decode kernel is interpreted."""
    model = tiny_model(num_hidden_layers=12, sliding_window=WINDOW, rope_scaling=YARN)
    reference = partial(reference_logits, model.config, published_weights(model))
    fused = Options(str(saved(model, tmp_path)), fused=True, kv_cache_mib=48)
    prompts = random_prompts([2, 16, 33, 49, 90, 130])
    engines.submit(vllm_engines.run, fused, [prompts[-1]], 1, prompt_logprobs=False).result()
    answers = engines.submit(vllm_engines.run, fused, prompts, 6, prompt_logprobs=False).result()
    assert answers[-1].cached_tokens == 128
    assert_agrees(reference, prompts, answers)
    backends = engines.submit(vllm_engines.report, fused).result().backends
    assert {name: len(layers) for name, layers in backends.items()} == {
        "TRILLION_FUSED_LATENT": 10,
        "TRILLION_LATENT": 2,
    }
    _, wrong = compare(partial(reference, window=WINDOW - 1), prompts, answers)
    assert wrong.max() > 1e-2
    _, wrong = compare(
        partial(reference_logits, tiny_config(num_hidden_layers=12, sliding_window=WINDOW), published_weights(model)),
        prompts,
        answers,
    )
    assert wrong.max() > 1e-2


def test_cache_groups_hold_latents_of_a_window(engines, options):
    groups = engines.submit(vllm_engines.report, options).result().groups
    local = [group for group in groups if group.spec == "SlidingWindowMLASpec"]
    (whole,) = [group for group in groups if group.spec == "MLAAttentionSpec"]
    assert len(local) == 5
    assert {group.window for group in local} == {WINDOW}
    assert {len(group.layers) for group in groups} == {2}
    assert {group.bytes_per_token for group in groups} == {(512 + 64) * 4}
    assert sorted(int(re.search(r"\d+", name)[0]) for name in whole.layers) == [5, 11]


def test_capacity_is_what_a_request_reserves(engines, options):
    told = engines.submit(vllm_engines.report, options).result()
    whole = 256 // 16
    local = -(-(WINDOW - 1 + 48) // 16) + 1
    assert told.capacity == int(told.blocks / (whole + 5 * local) * 256)
    without = int(told.blocks / (6 * whole) * 256)
    assert told.messages == [
        f"INFO: The KV cache holds {told.capacity:,} tokens at a context of 256: "
        f"{told.capacity / without:.2f} times what it would without windows."
    ]


def test_a_batch_as_long_as_the_context_is_warned_of(engines, options):
    wasteful = replace(options, max_model_len=1024, max_num_batched_tokens=1024, kv_cache_mib=96)
    frugal = replace(wasteful, max_num_batched_tokens=256)
    told, better = (engines.submit(vllm_engines.report, o).result() for o in (wasteful, frugal))
    assert [message.split(":")[0] for message in better.messages] == ["INFO"]
    assert told.messages[1] == (
        "WARNING: max_num_batched_tokens is 1,024, so that every request reserves as much in layers with a window; "
        f"with --max-num-batched-tokens 256 the KV cache would hold {better.capacity:,} tokens instead of "
        f"{told.capacity:,}."
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_in_bfloat16_is_as_close_as_plain_pytorch(engines, tmp_path):
    """The head sizes of VAETKI, for FlashAttention's sake; CUDA graphs, V2 model runner, stock global layers."""
    shape = {"hidden_size": 256, "num_attention_heads": 16, "qk_nope_head_dim": 128, "v_head_dim": 128}
    half = tiny_model(num_hidden_layers=12, sliding_window=WINDOW, **shape).to(torch.bfloat16)
    options = Options(str(saved(half, tmp_path)), dtype="bfloat16", block_size=64, eager=False)
    prompts = random_prompts(LENGTHS)
    answers = engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()
    exact = partial(reference_logits, half.config, published_weights(half))
    _, distances = compare(exact, prompts, answers)
    assert distances.mean() < 0.06
    _, wrong = compare(partial(exact, window=WINDOW // 2), prompts, answers)
    assert wrong.mean() > 2 * distances.mean()
    backends = engines.submit(vllm_engines.report, options).result().backends
    assert len(backends["TRILLION_FUSED_LATENT"]) == 10
