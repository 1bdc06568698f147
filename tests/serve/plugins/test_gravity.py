"""Gravity in a real vLLM engine, against Transformers' DeepSeek-V3 with the same weights.

On a CPU vLLM turns chunked prefill and prefix caching off for latent attention, so neither is tested here.
"""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support import vllm_engines
from support.engine_parity import assert_agrees, assert_as_close_as_plain_pytorch, compare, random_prompts, saved
from support.plan_parity import assert_planned
from support.tiny_gravity import YARN, deepseek_logits, tiny_model
from support.vllm_engines import Answer, Options

pytestmark = pytest.mark.engine

NEW_TOKENS = 16
LENGTHS = [2, 15, 16, 17, 33, 90, 200]
STACKED = "model.layers.2.mlp.experts."


@pytest.fixture(scope="module")
def model():
    """With all that such a file may have: factors of the query, groups of experts, YaRN.

    One dense layer and two with experts, of which the second's are in the file as modules hold them: stacked.
    """
    return tiny_model(q_lora_rank=32, n_group=4, topk_group=2, rope_parameters=YARN)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    directory = saved(model, tmp_path_factory.mktemp("gravity"))
    file = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(STACKED)}
    tensors |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(STACKED)}
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def options(checkpoint) -> Options:
    return Options(str(checkpoint))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts(LENGTHS)


@pytest.fixture(scope="module")
def answers(engines, options, prompts) -> list[Answer]:
    return engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()


def test_float32_agrees_with_transformers(model, prompts, answers):
    assert [len(answer.prompt_logprobs) for answer in answers] == [length - 1 for length in LENGTHS]
    assert {len(answer.tokens) for answer in answers} == {len(answer.logprobs) for answer in answers} == {NEW_TOKENS}
    assert_agrees(deepseek_logits(model), prompts, answers)


@pytest.mark.parametrize(
    "wrong",
    [
        {"routed_scaling_factor": 2.4},
        {"n_group": 1, "topk_group": 1},
        {"rope_parameters": YARN | {"rope_theta": 9_000.0}},
        {"rope_parameters": YARN | {"mscale_all_dim": 0.9}},
    ],
    ids=["experts", "groups", "rope", "yarn"],
)
def test_a_reference_with_one_thing_wrong_disagrees(model, prompts, answers, wrong):
    _, distances = compare(deepseek_logits(model, **wrong), prompts, answers)
    assert distances.max() > 1e-2


def test_bfloat16_is_as_close_as_plain_pytorch_in_bfloat16(engines, model, tmp_path, prompts):
    half = copy.deepcopy(model).to(torch.bfloat16)
    options = Options(str(saved(half, tmp_path)), dtype="bfloat16")
    answers = engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()
    assert_as_close_as_plain_pytorch(half, deepseek_logits(half), prompts, answers, bound=0.06)


def test_it_takes_the_memory_that_was_planned(engines, options):
    assert_planned(engines, options)


def test_every_layer_caches_a_latent(engines, options, model):
    (group,) = engines.submit(vllm_engines.report, options).result().groups
    assert group.spec == "MLAAttentionSpec"
    assert group.bytes_per_token == model.config.cached_numbers * 4 == (512 + 64) * 4
    assert len(group.layers) == 3


def test_a_bias_that_is_missing_is_named(start_fails, checkpoint, tmp_path):
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    weights = load_file(checkpoint / "model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    kind, message = start_fails(tmp_path)
    assert kind == "CheckpointError"
    assert message == f"the checkpoint lacks {name}; export it again"
