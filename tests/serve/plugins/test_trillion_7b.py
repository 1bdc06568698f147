"""Trillion-7B in a real vLLM engine, against the plain reference: full masks, no cache, float64.

The engine chooses the tokens and the reference scores them, so that one early difference does not hide the rest.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import trillion_model
from support import vllm_engines
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
def checkpoint(model, tmp_path_factory) -> Path:
    trillion_model.register()
    directory = tmp_path_factory.mktemp("trillion_7b")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def options(checkpoint) -> Options:
    return Options(str(checkpoint), block_size=32)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 320, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def answers(engines, options, prompts) -> list[Answer]:
    """A batch of mixed lengths, longer prompts prefilled in chunks of at most 48 tokens."""
    return engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()


def compare(model, prompts: list[list[int]], answers: list[Answer], **wrong) -> tuple[int, torch.Tensor]:
    """Tokens that the reference would not have chosen, and every log-probability's distance from the reference's."""
    weights = published_weights(model)
    mismatches, distances = 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(prompt + answer.tokens)
        expected = reference_logits(model.config, weights, ids, **wrong).log_softmax(-1)[:-1]
        new = len(answer.tokens)
        mismatches += int((expected[-new:].argmax(-1) != ids[-new:]).sum())
        given = torch.tensor(answer.prompt_logprobs + answer.logprobs, dtype=torch.float64)
        scored = expected.gather(1, ids[1:, None])[:, 0]
        distances.append((given - scored[-len(given) :]).abs())
    return mismatches, torch.cat(distances)


def test_float32_agrees_with_the_reference(model, prompts, answers):
    mismatches, distances = compare(model, prompts, answers)
    assert len(distances) == sum(LENGTHS) - len(LENGTHS) + NEW_TOKENS * len(LENGTHS)
    assert mismatches == 0
    assert distances.max() < 1e-4


@pytest.mark.parametrize("wrong", [{"theta": 90_000.0}, {"without": "post_mlp_layernorm"}], ids=["theta", "norm"])
def test_a_reference_with_one_thing_wrong_disagrees(model, prompts, answers, wrong):
    _, distances = compare(model, prompts, answers, **wrong)
    assert distances.max() > 1e-2


def test_prefixes_read_from_the_cache_change_nothing(engines, options, model, prompts):
    shared = prompts[-1][:150]
    first, *rest = [shared + tail for tail in ([7, 8, 9], [10], list(range(20, 60)))]
    engines.submit(vllm_engines.run, options, [first], 4, prompt_logprobs=False).result()
    answers = engines.submit(vllm_engines.run, options, [first, *rest], NEW_TOKENS, prompt_logprobs=False).result()
    assert all(answer.cached_tokens >= 128 for answer in answers)
    mismatches, distances = compare(model, [first, *rest], answers)
    assert mismatches == 0
    assert distances.max() < 1e-4


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
