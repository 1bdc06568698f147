"""Trillion-7B in a real vLLM engine, against the plain reference: full masks, no cache, float64."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support import vllm_engines
from support.engine_parity import assert_agrees, assert_as_close_as_plain_pytorch, compare, random_prompts, saved
from support.plan_parity import assert_planned
from support.tiny_trillion import published_weights, tiny_model
from support.trillion_reference import reference_logits
from support.vllm_engines import Answer, Options
from trillion_model.trillion.modeling_trillion import without_mtp

pytestmark = pytest.mark.engine

NEW_TOKENS = 16
# Around the edges of blocks (32) and of chunks of a prefill (48), and several of each long.
LENGTHS = [2, 31, 32, 33, 47, 49, 90, 200]


@pytest.fixture(scope="module")
def model():
    """Four layers whose four query heads share two heads of keys."""
    return without_mtp(tiny_model(num_attention_heads=4, num_key_value_heads=2, head_dim=32))


@pytest.fixture(scope="module")
def reference(model) -> Callable[..., torch.Tensor]:
    return partial(reference_logits, model.config, published_weights(model))


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    return saved(model, tmp_path_factory.mktemp("trillion_7b"))


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


@pytest.mark.parametrize("wrong", [{"theta": 90_000.0}, {"without": "post_mlp_layernorm"}], ids=["theta", "norm"])
def test_a_reference_with_one_thing_wrong_disagrees(reference, prompts, answers, wrong):
    _, distances = compare(partial(reference, **wrong), prompts, answers)
    assert distances.max() > 1e-2


def test_bfloat16_is_as_close_as_plain_pytorch_in_bfloat16(engines, model, tmp_path, prompts):
    half = copy.deepcopy(model).to(torch.bfloat16)
    options = Options(str(saved(half, tmp_path)), dtype="bfloat16", block_size=32)
    answers = engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()
    exact = partial(reference_logits, half.config, published_weights(half))
    assert_as_close_as_plain_pytorch(half, exact, prompts, answers, bound=0.06)
    assert engines.submit(vllm_engines.logits_dtype, options).result() == torch.float32


def test_prefixes_read_from_the_cache_change_nothing(engines, options, reference, prompts):
    shared = prompts[-1][:150]
    first, *rest = [shared + tail for tail in ([7, 8, 9], [10], list(range(20, 60)))]
    engines.submit(vllm_engines.run, options, [first], 4, prompt_logprobs=False).result()
    answers = engines.submit(vllm_engines.run, options, [first, *rest], NEW_TOKENS, prompt_logprobs=False).result()
    assert all(answer.cached_tokens >= 128 for answer in answers)
    assert_agrees(reference, [first, *rest], answers)


def test_it_takes_the_memory_that_was_planned(engines, options):
    assert_planned(engines, options)


def test_its_cache_holds_a_key_and_a_value_of_each_head(engines, options, model):
    (group,) = engines.submit(vllm_engines.report, options).result().groups
    assert group.spec == "FullAttentionSpec"
    assert group.bytes_per_token == model.config.cached_numbers * 4
    assert len(group.layers) == 4


def test_a_query_tensor_that_is_missing_is_named(start_fails, checkpoint, tmp_path):
    name = "model.layers.2.self_attn.q_proj.weight"
    weights = load_file(checkpoint / "model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    kind, message = start_fails(tmp_path)
    assert kind == "CheckpointError"
    assert message == f"the checkpoint lacks {name}; export it again"
