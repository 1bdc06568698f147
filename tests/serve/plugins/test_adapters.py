"""LoRA adapters in real vLLM engines, against plain models with their weights added to their own."""

from functools import partial

import pytest
import torch

from support import tiny_gravity, tiny_tri70b, vllm_engines
from support.adapters import RANK, Adapter
from support.engine_parity import assert_agrees, compare, saved
from support.random_weights import published_weights
from support.tri70b_reference import reference_logits as tri70b_logits
from support.vaetki_reference import reference_logits
from support.vllm_engines import Options

pytestmark = pytest.mark.engine

MLP = ("gate_proj", "up_proj", "down_proj")
PROMPTS = [torch.arange(3, 3 + n).tolist() for n in (40, 40, 2)]


@pytest.fixture(scope="module")
def options(checkpoint) -> Options:
    return Options(str(checkpoint), lora_rank=RANK, kv_cache_mib=32)  # vLLM logs an equal capacity once only


def assert_only_those_who_ask_get_it(engines, options: Options, adapter: Adapter, plain, merged, folder) -> None:
    """Assert that requests of one batch with the adapter agree with ``merged``, and one without with ``plain``."""
    path = adapter.save(folder)
    answers = engines.submit(vllm_engines.run, options, PROMPTS, 8, adapters=[path, None, path]).result()
    assert_agrees(merged, PROMPTS[::2], answers[::2])
    assert_agrees(plain, PROMPTS[1:2], answers[1:2])
    _, distances = compare(plain, PROMPTS[:1], answers[:1])
    assert distances.max() > 1e-2


def test_an_adapter_is_its_weights_added_to_the_models(engines, options, model, weights, tmp_path):
    adapter = Adapter.random(weights, ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", *MLP))
    assert len(adapter.pairs) == 12 * (4 + 3)
    plain, merged = (
        partial(reference_logits, model.config, published_weights(each)) for each in (model, adapter.merged(model))
    )
    assert_only_those_who_ask_get_it(engines, options, adapter, plain, merged, tmp_path / "adapter")


def test_tri_70b_takes_one_for_every_projection_and_none_for_its_head(engines, tmp_path):
    model = tiny_tri70b.tiny_model(sliding_window=32)
    weights = published_weights(model)
    adapter = Adapter.random(weights, ("q_proj", "k_proj", "v_proj", "o_proj", *MLP))
    assert len(adapter.pairs) == 8 * 7
    options = Options(str(saved(model, tmp_path / "model")), block_size=32, lora_rank=RANK, kv_cache_mib=32)
    plain, merged = (
        partial(tri70b_logits, model.config, published_weights(each)) for each in (model, adapter.merged(model))
    )
    assert_only_those_who_ask_get_it(engines, options, adapter, plain, merged, tmp_path / "adapter")
    head = Adapter.of(weights, "lm_head").save(tmp_path / "head")
    _, message = engines.submit(vllm_engines.refusal, options, head).result()
    assert "an adapter's layer is 'lm_head', but must be q_proj, k_proj, v_proj, o_proj" in message


@pytest.fixture(scope="module")
def gravity():
    """With one projection for queries, as the released model has it."""
    return tiny_gravity.tiny_model()


@pytest.fixture(scope="module")
def gravity_options(gravity, tmp_path_factory) -> Options:
    return Options(str(saved(gravity, tmp_path_factory.mktemp("gravity"))), lora_rank=RANK)


def test_gravity_takes_one_outside_experts(engines, gravity, gravity_options, tmp_path):
    adapter = Adapter.random(published_weights(gravity), ("q_proj", "kv_a_proj_with_mqa", "o_proj", *MLP))
    assert len(adapter.pairs) == 3 * (3 + 3)
    plain, merged = map(tiny_gravity.deepseek_logits, (gravity, adapter.merged(gravity)))
    assert_only_those_who_ask_get_it(engines, gravity_options, adapter, plain, merged, tmp_path / "adapter")


@pytest.mark.parametrize(
    "module",
    [
        "model.layers.1.self_attn.kv_b_proj",
        "model.layers.1.mlp.experts.0.down_proj",
        "model.layers.1.mlp.gate",
        "lm_head",
    ],
)
def test_an_adapter_of_any_other_layer_is_refused(
    engines, options, weights, gravity, gravity_options, tmp_path, module
):
    adapter = Adapter.of(weights, module).save(tmp_path / "adapter")
    _, message = engines.submit(vllm_engines.refusal, options, adapter).result()
    assert f"an adapter's layer is '{module}', but must be q_a_proj, q_b_proj" in message
    adapter = Adapter.of(published_weights(gravity), module).save(tmp_path / "gravitys")
    _, message = engines.submit(vllm_engines.refusal, gravity_options, adapter).result()
    assert f"an adapter's layer is '{module}', but must be q_proj, kv_a_proj_with_mqa" in message
