"""Gravity is Transformers' DeepSeek-V3 under another name: the same logits, tensors, and published layout."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

import trillion_model
from support.tiny_gravity import tiny_config, tiny_model
from trillion_model import presets
from trillion_model.architecture import Architecture
from trillion_model.errors import ConfigError
from trillion_model.gravity import GravityMoEConfig, GravityMoEForCausalLM
from trillion_model.gravity.layout import LAYOUT
from trillion_model.sizes import count_parameters

LONG = 60


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 320, shape, generator=torch.Generator().manual_seed(seed))


def as_deepseek(model: GravityMoEForCausalLM, **changes) -> DeepseekV3ForCausalLM:
    """Transformers' own model with the same weights, built from what a config.json would say."""
    fields = json.loads(model.config.to_json_string(use_diff=False)) | changes
    fields.pop("model_type")
    other = DeepseekV3ForCausalLM(DeepseekV3Config(**fields)).eval()
    other.load_state_dict(model.state_dict())
    return other


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


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
        ({}, {"rope_theta": 1e6, "rope_type": "default"}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0},
        ),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, {"rope_theta": 5e5, "rope_type": "default"}),
    ],
)
def test_rope_has_several_spellings(fields, expected):
    read = GravityMoEConfig.from_dict({"model_type": "gravity_moe", "head_dim": 64, "qk_head_dim": 192, **fields})
    assert expected.items() <= read.rope_parameters.items()
    assert GravityMoEConfig.from_dict(read.to_dict()).rope_parameters == read.rope_parameters


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hidden_size", "64", "a whole number above 0"),
        ("q_lora_rank", 0, "null or a whole number above 0"),
        ("num_key_value_heads", 1, "num_attention_heads (2) or absent"),
        ("num_experts_per_tok", 9, "at most 8"),
        ("n_group", 3, "a divisor of n_routed_experts (8)"),
        ("topk_group", 2, "at most n_group (1)"),
        ("first_k_dense_replace", 4, "from 0 to num_hidden_layers (3)"),
        ("qk_rope_head_dim", 33, "even"),
        ("routed_scaling_factor", 0, "a number above 0"),
        ("norm_topk_prob", 1, "true or false"),
        ("scoring_func", "softmax", "Gravity has no other form"),
        ("topk_method", "greedy", "Gravity has no other form"),
        ("rope_parameters", 8.0, "an object with a rope_type"),
        ("eos_token_id", 320, "from 0 to vocab_size - 1 (319)"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_was_expected(field, value, expected):
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{field: value})
    assert caught.value.field == field
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, "rope_parameters.rope_type"),
        ({"rope_type": "yarn"}, "rope_parameters.factor"),
        ({"rope_theta": 0}, "rope_parameters.rope_theta"),
    ],
)
def test_rope_parameters_are_checked_field_by_field(parameters, field):
    with pytest.raises(ConfigError) as caught:
        tiny_config(rope_parameters=parameters)
    assert caught.value.field == field


def test_architecture_is_frozen_and_a_changed_copy_is_whole():
    config = tiny_config()
    with pytest.raises(ConfigError, match="replace"):
        config.n_group = 2
    changed = config.replace(num_attention_heads=4, rope_theta=5e4)
    assert (changed.num_key_value_heads, changed.rope_parameters["rope_theta"]) == (4, 5e4)
    assert config.replace(vocab_size=400).rope_parameters == config.rope_parameters
