"""Tri-70B's configuration: what published files spell, what follows from what, and what is refused."""

import json

import pytest

from support.tiny_tri70b import tiny_config
from trillion_model import presets
from trillion_model.architecture import Architecture
from trillion_model.errors import ConfigError
from trillion_model.sizes import count_parameters
from trillion_model.tri70b import TrillionConfig

WRONG = [
    ("vocab_size", 0, "a whole number above 0"),
    ("hidden_size", -4, "a whole number above 0"),
    ("intermediate_size", 1.5, "a whole number above 0"),
    ("num_hidden_layers", None, "a whole number above 0"),
    ("num_attention_heads", True, "a whole number above 0"),
    ("num_key_value_heads", 3, "a divisor of num_attention_heads (4)"),
    ("head_dim", 33, "even"),
    ("hidden_act", "gelu", "'silu'"),
    ("rms_norm_eps", 0, "a number above 0"),
    ("initializer_range", float("nan"), "a number above 0"),
    ("sliding_window", 0, "a whole number above 0"),
    ("global_attention_freq", 0, "a whole number above 0"),
    ("layer_types", ["full_attention"], "a list of num_hidden_layers (8) names"),
    ("layer_types", ["full_attention"] * 8, "global_attention_freq (4)"),
    ("rope_theta", -1.0, "a number above 0"),
    ("attn_temperature_tuning", 4, "true or false"),
    ("attn_scale", -0.1, "a number of 0 or more"),
    ("floor_scale", 0, "a number above 0"),
    ("max_position_embeddings", 0, "a whole number above 0"),
    ("tie_word_embeddings", True, "false"),
    ("use_cache", "yes", "true or false"),
    ("eos_token_id", [2, 400], "from 0 to vocab_size - 1 (319)"),
    # Fields of the published files that Tri-70B has only one meaning for.
    ("attention_bias", True, "Tri-70B has no other form"),
    ("mlp_bias", True, "Tri-70B has no other form"),
    ("pretraining_tp", 2, "Tri-70B has no other form"),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "positions are not scaled"),
    ("rope_parameters", {"rope_type": "llama3"}, "positions are not scaled"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG, ids=[f"{f}={v}" for f, v, _ in WRONG])
def test_a_wrong_field_is_named_with_its_value_and_what_was_expected(field, value, expected):
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{field: value})
    assert caught.value.field == field
    assert f"{field} is {value!r}, but must be " in str(caught.value)
    assert expected in str(caught.value)


def test_every_architecture_field_has_a_wrong_value_above():
    assert set(TrillionConfig.architecture_fields) <= {field for field, _, _ in WRONG}


def test_the_published_file_reads_as_it_is():
    published = {
        "architectures": ["TrillionForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_scale": 0.1,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "global_attention_freq": 4,
        "head_dim": 128,
        "mlp_bias": False,
        "model_type": "trillion",
        "pretraining_tp": 1,
        "rope_scaling": None,
        "rope_theta": 500_000,
        "sliding_window": 4096,
        "torch_dtype": "bfloat16",
    }
    config = TrillionConfig.from_dict(published)
    assert (config.attn_scale, config.floor_scale, config.rope_theta) == (0.1, 8192, 500_000)
    assert [i for i in range(80) if not config.is_local(i)] == list(range(3, 80, 4))


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({}, 10_000.0),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
    ],
)
def test_the_rope_base_has_two_spellings(fields, theta):
    assert tiny_config(**fields).rope_theta == theta


def test_two_spellings_that_disagree_are_refused():
    with pytest.raises(ConfigError, match=r"rope_parameters\.rope_theta is 20000\.0"):
        tiny_config(rope_theta=1e4, rope_parameters={"rope_theta": 2e4})


def test_layer_types_follow_the_frequency_also_in_a_changed_copy():
    config = tiny_config()
    assert config.layer_types == (["sliding_attention"] * 3 + ["full_attention"]) * 2
    assert config.replace(num_hidden_layers=4).layer_types == ["sliding_attention"] * 3 + ["full_attention"]
    assert config.replace(global_attention_freq=1).layer_types == ["full_attention"] * 8


def test_a_saved_file_states_the_whole_architecture_and_reads_back(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(TrillionConfig.architecture_fields) <= set(saved)
    read = TrillionConfig.from_pretrained(tmp_path)
    assert all(getattr(read, field) == getattr(config, field) for field in TrillionConfig.architecture_fields)


def test_the_preset_has_the_released_models_shape():
    config = presets.get("tri-70b")
    architecture = Architecture.of(config)
    assert architecture.published_shapes()["model.layers.79.self_attn.k_proj.weight"] == (1024, 8192)
    assert sum(count_parameters(architecture).total.values()) == 70_490_791_936
    assert sum(map(config.is_local, range(80))) == 60
    assert config.cached_numbers == 2 * 8 * 128
