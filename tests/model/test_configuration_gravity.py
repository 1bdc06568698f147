"""Gravity's configuration: what published files spell, what follows from what, and what is refused."""

import pytest

from support.tiny_gravity import YARN, tiny_config
from trillion_model.errors import ConfigError
from trillion_model.gravity import GravityMoEConfig

WRONG = [
    ("vocab_size", 0, "a whole number above 0"),
    ("hidden_size", "64", "a whole number above 0"),
    ("intermediate_size", 1.5, "a whole number above 0"),
    ("moe_intermediate_size", -4, "a whole number above 0"),
    ("num_hidden_layers", None, "a whole number above 0"),
    ("num_attention_heads", True, "a whole number above 0"),
    ("kv_lora_rank", 0, "a whole number above 0"),
    ("qk_nope_head_dim", 0, "a whole number above 0"),
    ("v_head_dim", 0, "a whole number above 0"),
    ("n_routed_experts", 0, "a whole number above 0"),
    ("n_shared_experts", 0, "a whole number above 0"),
    ("max_position_embeddings", 0, "a whole number above 0"),
    ("q_lora_rank", 0, "null or a whole number above 0"),
    ("num_key_value_heads", 1, "num_attention_heads (2) or absent"),
    ("num_experts_per_tok", 9, "at most 8"),
    ("n_group", 3, "a divisor of n_routed_experts (8)"),
    ("topk_group", 2, "at most n_group (1)"),
    ("first_k_dense_replace", 4, "from 0 to num_hidden_layers (3)"),
    ("qk_rope_head_dim", 33, "even"),
    ("routed_scaling_factor", 0, "a number above 0"),
    ("rms_norm_eps", float("inf"), "a number above 0"),
    ("initializer_range", float("nan"), "a number above 0"),
    ("norm_topk_prob", 1, "true or false"),
    ("scoring_func", "softmax", "Gravity has no other form"),
    ("topk_method", "greedy", "Gravity has no other form"),
    ("moe_layer_freq", 2, "Gravity has no other form"),
    ("hidden_act", "gelu", "Gravity has no other form"),
    ("rope_interleave", False, "Gravity has no other form"),
    ("attention_bias", True, "Gravity has no other form"),
    ("attention_dropout", 0.1, "Gravity has no other form"),
    ("tie_word_embeddings", True, "Gravity has no other form"),
    ("rope_parameters", 8.0, "an object with a rope_type"),
    ("eos_token_id", 320, "from 0 to vocab_size - 1 (319)"),
    ("use_cache", "yes", "true or false"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG, ids=[f"{f}={v}" for f, v, _ in WRONG])
def test_a_wrong_field_is_named_with_its_value_and_what_was_expected(field, value, expected):
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{field: value})
    assert caught.value.field == field
    assert expected in str(caught.value)


def test_every_architecture_field_has_a_wrong_value_above():
    assert set(GravityMoEConfig.architecture_fields) <= {field for field, _, _ in WRONG}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, "rope_parameters.rope_type"),
        ({"rope_theta": 0}, "rope_parameters.rope_theta"),
        ({"factor": None}, "rope_parameters.factor"),
        ({"factor": float("inf")}, "rope_parameters.factor"),
        ({"original_max_position_embeddings": "x"}, "rope_parameters.original_max_position_embeddings"),
        ({"beta_fast": -1}, "rope_parameters.beta_fast"),
        ({"beta_slow": 0}, "rope_parameters.beta_slow"),
        ({"mscale": "1"}, "rope_parameters.mscale"),
        ({"mscale_all_dim": -1}, "rope_parameters.mscale_all_dim"),
        ({"attention_factor": 1.2}, "rope_parameters.attention_factor"),
    ],
)
def test_rope_parameters_are_checked_field_by_field(changes, field):
    with pytest.raises(ConfigError) as caught:
        tiny_config(rope_parameters=YARN | changes)
    assert caught.value.field == field


def test_yarn_without_a_factor_is_refused():
    with pytest.raises(ConfigError, match=r"rope_parameters\.factor is None"):
        tiny_config(rope_parameters={"rope_type": "yarn"})


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


def test_architecture_is_frozen_and_a_changed_copy_is_whole():
    config = tiny_config()
    with pytest.raises(ConfigError, match="replace"):
        config.n_group = 2
    changed = config.replace(num_attention_heads=4, rope_theta=5e4)
    assert (changed.num_key_value_heads, changed.rope_parameters["rope_theta"]) == (4, 5e4)
    assert config.replace(vocab_size=400).rope_parameters == config.rope_parameters
