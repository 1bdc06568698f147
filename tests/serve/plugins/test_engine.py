"""VAETKI in a real vLLM engine, against the plain reference: full masks, no cache, float64.

The engine chooses the tokens and the reference scores them, so that one early difference does not hide the rest.
"""

import copy
import re
from dataclasses import replace

import pytest
import torch

import trillion_model
from support import vllm_engines
from support.tiny_vaetki import published_weights, tiny_model
from support.vaetki_reference import reference_logits
from support.vllm_engines import Answer, Options

pytestmark = pytest.mark.engine

WINDOW = 32
NEW_TOKENS = 24
# Around the edges of blocks (16), the window (32), chunks of a prefill (48), and several windows long.
LENGTHS = [2, 15, 16, 17, 31, 32, 33, 47, 49, 90, 130, 200]


def random_prompts(lengths: list[int], seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 320, (n,), generator=generator).tolist() for n in lengths]


def compare(
    config, weights, prompts: list[list[int]], answers: list[Answer], window: int | None = None
) -> tuple[int, torch.Tensor]:
    """Tokens that the reference would not have chosen, and every log-probability's distance from the reference's."""
    mismatches, distances = 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(prompt + answer.tokens)
        expected = reference_logits(config, weights, ids, window).log_softmax(-1)[:-1]
        new = len(answer.tokens)
        mismatches += int((expected[-new:].argmax(-1) != ids[-new:]).sum())
        given = torch.tensor(answer.prompt_logprobs + answer.logprobs, dtype=torch.float64)
        scored = expected.gather(1, ids[1:, None])[:, 0]
        distances.append((given - scored[-len(given) :]).abs())
    return mismatches, torch.cat(distances)


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


def test_float32_agrees_with_the_reference(model, weights, prompts, answers):
    mismatches, distances = compare(model.config, weights, prompts, answers)
    assert len(distances) == sum(LENGTHS) - len(LENGTHS) + NEW_TOKENS * len(LENGTHS)
    assert mismatches == 0
    assert distances.max() < 1e-4


@pytest.mark.parametrize("wrong", [WINDOW - 1, WINDOW + 1])
def test_a_reference_with_the_window_wrong_by_one_disagrees(model, weights, prompts, answers, wrong):
    _, distances = compare(model.config, weights, prompts, answers, window=wrong)
    assert distances.max() > 1e-2


def test_prefixes_read_from_the_cache_change_nothing(engines, options, model, weights):
    shared = random_prompts([150], seed=2)[0]
    first, *rest = [shared + tail for tail in random_prompts([5, 1, 20, 40], seed=3)]
    engines.submit(vllm_engines.run, options, [first], 4, prompt_logprobs=False).result()
    answers = engines.submit(vllm_engines.run, options, [first, *rest], NEW_TOKENS, prompt_logprobs=False).result()
    assert all(answer.cached_tokens >= 128 for answer in answers)
    mismatches, distances = compare(model.config, weights, [first, *rest], answers)
    assert mismatches == 0
    assert distances.max() < 1e-4


def test_preempted_requests_resume_exactly(engines, options, model, weights):
    tiny = replace(options, kv_cache_mib=6)
    prompts = random_prompts([60] * 8, seed=4)
    answers = engines.submit(vllm_engines.run, tiny, prompts, 60).result()
    assert engines.submit(vllm_engines.preemptions, tiny).result() > 0
    mismatches, distances = compare(model.config, weights, prompts, answers)
    assert mismatches == 0
    assert distances.max() < 1e-4


def test_bfloat16_is_as_close_as_plain_pytorch_in_bfloat16(engines, model, tmp_path, prompts):
    half = copy.deepcopy(model).to(torch.bfloat16)
    trillion_model.register()
    half.save_pretrained(tmp_path)
    answers = engines.submit(vllm_engines.run, Options(str(tmp_path), dtype="bfloat16"), prompts, NEW_TOKENS).result()
    exact = published_weights(half)
    _, distances = compare(half.config, exact, prompts, answers)
    plain = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt + answer.tokens])
        with torch.no_grad():
            logprobs = half(ids).logits[0].double().log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        plain.append(Answer(answer.tokens, [], logprobs.tolist(), 0))
    _, plain_distances = compare(half.config, exact, prompts, plain)
    assert distances.mean() < 0.06
    assert distances.mean() < 1.25 * plain_distances.mean()


@pytest.mark.skipif(torch.cuda.is_available(), reason="interprets kernels, which a GPU runs")
def test_local_layers_agree_with_the_reference_on_a_gpus_path(engines, options, model, weights):
    """Prefill in chunks, prefixes read from the cache, mixed batches; the decode kernel is interpreted."""
    fused = replace(options, fused=True, kv_cache_mib=48)
    prompts = random_prompts([2, 16, 33, 49, 90, 130])
    engines.submit(vllm_engines.run, fused, [prompts[-1]], 1, prompt_logprobs=False).result()
    answers = engines.submit(vllm_engines.run, fused, prompts, 6, prompt_logprobs=False).result()
    assert answers[-1].cached_tokens == 128
    mismatches, distances = compare(model.config, weights, prompts, answers)
    assert mismatches == 0
    assert distances.max() < 1e-4
    backends = engines.submit(vllm_engines.report, fused).result().backends
    assert {name: len(layers) for name, layers in backends.items()} == {
        "TRILLION_FUSED_LATENT": 10,
        "TRILLION_LATENT": 2,
    }
    _, wrong = compare(model.config, weights, prompts, answers, window=WINDOW - 1)
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
        f"{told.capacity / without:.2f} times what latents without windows would."
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
    trillion_model.register()
    half.save_pretrained(tmp_path)
    options = Options(str(tmp_path), dtype="bfloat16", block_size=64, eager=False)
    prompts = random_prompts(LENGTHS)
    answers = engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()
    _, distances = compare(half.config, published_weights(half), prompts, answers)
    assert distances.mean() < 0.06
    _, wrong = compare(half.config, published_weights(half), prompts, answers, window=WINDOW // 2)
    assert wrong.mean() > 2 * distances.mean()
    backends = engines.submit(vllm_engines.report, options).result().backends
    assert len(backends["TRILLION_FUSED_LATENT"]) == 10
