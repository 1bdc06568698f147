"""Gravity in a real vLLM engine, against Transformers' DeepSeek-V3 with the same weights.

On a CPU vLLM turns chunked prefill and prefix caching off for latent attention, so neither is tested here.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import trillion_model
from support import vllm_engines
from support.tiny_gravity import tiny_model
from support.vllm_engines import Answer, Options

pytestmark = pytest.mark.engine

NEW_TOKENS = 16
LENGTHS = [2, 15, 16, 17, 33, 90, 200]
STACKED = "model.layers.2.mlp.experts."


@pytest.fixture(scope="module")
def model():
    """One dense layer and two with experts, of which the second's are in the file as modules hold them: stacked."""
    return tiny_model()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    trillion_model.register()
    directory = tmp_path_factory.mktemp("gravity")
    model.save_pretrained(directory)
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
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 320, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def answers(engines, options, prompts) -> list[Answer]:
    return engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()


@torch.no_grad()
def compare(model, prompts: list[list[int]], answers: list[Answer], **wrong) -> tuple[int, torch.Tensor]:
    """Tokens that Transformers would not have chosen, and every log-probability's distance from its own."""
    fields = json.loads(model.config.to_json_string(use_diff=False)) | wrong
    fields.pop("model_type")
    reference = DeepseekV3ForCausalLM(DeepseekV3Config(**fields)).eval()
    reference.load_state_dict(model.state_dict())
    mismatches, distances = 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(prompt + answer.tokens)
        expected = reference(ids[None]).logits[0].double().log_softmax(-1)[:-1]
        new = len(answer.tokens)
        mismatches += int((expected[-new:].argmax(-1) != ids[-new:]).sum())
        given = torch.tensor(answer.prompt_logprobs + answer.logprobs, dtype=torch.float64)
        distances.append((given - expected.gather(1, ids[1:, None])[:, 0]).abs())
    return mismatches, torch.cat(distances)


def test_float32_agrees_with_transformers(model, prompts, answers):
    mismatches, distances = compare(model, prompts, answers)
    assert len(distances) == sum(LENGTHS) - len(LENGTHS) + NEW_TOKENS * len(LENGTHS)
    assert mismatches == 0
    assert distances.max() < 1e-4


@pytest.mark.parametrize(
    "wrong",
    [{"routed_scaling_factor": 2.4}, {"rope_parameters": {"rope_type": "default", "rope_theta": 9_000.0}}],
    ids=["experts", "rope"],
)
def test_a_reference_with_one_thing_wrong_disagrees(model, prompts, answers, wrong):
    _, distances = compare(model, prompts, answers, **wrong)
    assert distances.max() > 1e-2


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
