"""Gravity is Transformers' DeepSeek-V3 under another name: the same logits, tensors, and published layout."""

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

import trillion_model
from support.random_weights import random_ids
from support.tiny_gravity import as_deepseek, tiny_model
from trillion_model import presets
from trillion_model.architecture import Architecture
from trillion_model.gravity import GravityMoEConfig, GravityMoEForCausalLM
from trillion_model.gravity.layout import LAYOUT
from trillion_model.sizes import count_parameters

LONG = 60


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": 32}, {"n_group": 4, "topk_group": 2}], ids=str)
def test_logits_are_deepseek_v3s(changes):
    model, ids = tiny_model(**changes), random_ids(2, LONG)
    expected = as_deepseek(model)(ids).logits
    torch.testing.assert_close(model(ids).logits, expected)
    wrong = as_deepseek(model, routed_scaling_factor=2.0)(ids).logits
    assert (model(ids).logits - wrong).abs().max() > 1e-2


@torch.no_grad()
def test_cached_generation_agrees_with_the_whole_forward():
    model, ids = tiny_model(), random_ids(1, LONG)
    out = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, prefill_chunk_size=7)
    for end in range(LONG, LONG + 6):
        assert model(out[:, :end]).logits[0, -1].argmax() == out[0, end]


def test_auto_classes_save_and_load_the_published_layout(tmp_path):
    trillion_model.register()
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, GravityMoEConfig)
    assert (config.model_type, config.architectures) == ("gravity_moe", ["GravityMoEForCausalLM"])
    shapes = Architecture.of(config).published_shapes()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == shapes  # noqa: SIM118
    assert shapes["model.layers.1.mlp.experts.7.gate_proj.weight"] == (32, 64)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, GravityMoEForCausalLM)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_layout_undoes_itself_and_is_transformers_own(tmp_path):
    model = tiny_model()
    as_deepseek(model).save_pretrained(tmp_path)
    parts = {
        published: part
        for name, tensor in model.state_dict().items()
        for published, part in LAYOUT.to_published(name, tensor).items()
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(LAYOUT.to_module(name, tuple(tensor.shape), parts.__getitem__), tensor)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == parts.keys()
        assert all(torch.equal(file.get_tensor(name), part) for name, part in parts.items())


def test_the_preset_has_the_parameters_of_the_model_card():
    parameters = count_parameters(Architecture.of(presets.get("gravity-16b")))
    assert round(sum(parameters.total.values()) / 1e9, 2) == 16.24
    assert round(sum(parameters.active.values()) / 1e9, 2) == 3.16


def test_a_layer_caches_a_latent_and_no_layer_is_local():
    config = presets.get("gravity-16b")
    assert config.cached_numbers == 512 + 64
    assert not any(map(config.is_local, range(config.num_hidden_layers)))
