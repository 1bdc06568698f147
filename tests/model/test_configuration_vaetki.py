"""The configuration checks every field, names what is wrong, and cannot change afterwards."""

import copy
import json

import pytest

from support.tiny_vaetki import tiny_config
from trillion_model.errors import ConfigError
from trillion_model.vaetki import VaetkiConfig
from trillion_model.vaetki.configuration_vaetki import ARCHITECTURE_FIELDS

WRONG = [
    ("vocab_size", 0, "a whole number above 0"),
    ("hidden_size", -4, "a whole number above 0"),
    ("intermediate_size", 1.5, "a whole number above 0"),
    ("moe_intermediate_size", "64", "a whole number above 0"),
    ("num_hidden_layers", None, "a whole number above 0"),
    ("num_attention_heads", True, "a whole number above 0"),
    ("q_lora_rank", 0, "a whole number above 0"),
    ("kv_lora_rank", 0, "a whole number above 0"),
    ("qk_nope_head_dim", 0, "a whole number above 0"),
    ("qk_rope_head_dim", 33, "even"),
    ("v_head_dim", 0, "a whole number above 0"),
    ("n_routed_experts", 0, "a whole number above 0"),
    ("n_shared_experts", 0, "a whole number above 0"),
    ("num_experts_per_tok", 5, "at most n_routed_experts (4)"),
    ("first_k_dense_replace", 8, "from 0 to num_hidden_layers (7)"),
    ("first_k_dense_replace", -1, "from 0 to num_hidden_layers (7)"),
    ("norm_topk_prob", 1, "true or false"),
    ("routed_scaling_factor", 0.0, "a number above 0"),
    ("hidden_act", "gelu", "'silu'"),
    ("rms_norm_eps", 0, "a number above 0"),
    ("initializer_range", float("nan"), "a number above 0"),
    ("initializer_range", float("inf"), "a number above 0"),
    ("sliding_window", 0, "a whole number above 0"),
    ("rope_theta", -1.0, "a number above 0"),
    ("rope_theta_global", "1e6", "a number above 0"),
    ("global_position_scale", 0.0, "a number above 0"),
    ("rope_interleave", False, "true"),
    ("max_position_embeddings", 0, "a whole number above 0"),
    ("tie_word_embeddings", True, "false"),
    ("bos_token_id", 320, "from 0 to vocab_size - 1 (319)"),
    ("eos_token_id", [2, 400], "from 0 to vocab_size - 1 (319)"),
    ("pad_token_id", -1, "from 0 to vocab_size - 1 (319)"),
    ("router_aux_loss_coef", -1e-4, "a number of 0 or more"),
    ("use_cache", "yes", "true or false"),
    ("output_router_logits", None, "true or false"),
    ("layer_types", ["full_attention"], "a list of num_hidden_layers (7) names"),
    ("rope_scaling", 8.0, "null or an object with a rope_type"),
    ("rope_parameters", 8.0, "null, an object, or an object for sliding_attention and full_attention each"),
    ("rope_parameters", {"full_attention": 8.0}, "an object for sliding_attention and full_attention each"),
    ("rope_parameters", {"full_attention": {}, "factor": 8.0}, "an object for sliding_attention and full_attention"),
    ("rope_parameters", {"sliding_attention": {"rope_type": "linear", "factor": 8.0}}, "'default' for local layers"),
    # Fields of other architectures' files, which VAETKI has only one meaning for.
    ("scoring_func", "softmax", "'sigmoid'"),
    ("n_group", 8, "VAETKI has no other form"),
    ("attention_bias", True, "VAETKI has no other form"),
    ("moe_layer_freq", 2, "VAETKI has no other form"),
    ("num_key_value_heads", 1, "num_attention_heads (2) or absent"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG, ids=[f"{f}={v}" for f, v, _ in WRONG])
def test_a_wrong_field_is_named_with_its_value_and_what_was_expected(field, value, expected):
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{field: value})
    assert caught.value.field == field
    assert f"{field} is {value!r}, but must be " in str(caught.value)
    assert expected in str(caught.value)


def test_every_architecture_field_has_a_wrong_value_above():
    assert set(ARCHITECTURE_FIELDS) <= {field for field, _, _ in WRONG}


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_scaling.rope_type"),
        ({"rope_type": "yarn"}, "rope_scaling.factor"),
        ({"type": "yarn", "factor": 0}, "rope_scaling.factor"),
        ({"type": "yarn", "factor": 4, "beta_fast": "x"}, "rope_scaling.beta_fast"),
        ({"type": "yarn", "factor": 4, "beta_slow": float("inf")}, "rope_scaling.beta_slow"),
        ({"type": "yarn", "factor": 4, "mscale": -1}, "rope_scaling.mscale"),
        ({"type": "yarn", "factor": 4, "attention_factor": 1.2}, "rope_scaling.attention_factor"),
    ],
)
def test_rope_scaling_is_checked_field_by_field(scaling, field):
    with pytest.raises(ConfigError) as caught:
        tiny_config(rope_scaling=scaling)
    assert caught.value.field == field


def test_a_layer_type_is_named_by_its_place():
    types = ["sliding_attention"] * 6 + ["linear_attention"]
    with pytest.raises(ConfigError, match=r"layer_types\[6\] is 'linear_attention'"):
        tiny_config(layer_types=types)


def test_every_sixth_layer_is_global_unless_listed():
    types = VaetkiConfig().layer_types
    assert [i for i, kind in enumerate(types) if kind == "full_attention"] == [5, 11, 17, 23, 29, 35, 41, 47]
    assert tiny_config(layer_types=["full_attention"] * 7).layer_types == ["full_attention"] * 7


@pytest.mark.parametrize(
    ("fields", "theta"),
    [({}, 10_000.0), ({"rope_theta": 5e4}, 5e4), ({"rope_theta_local": 2e4}, 2e4)],
)
def test_the_local_rope_base_has_two_spellings(fields, theta):
    assert tiny_config(**fields).rope_theta == theta


LINEAR = {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, (1e4, 1e6, None)),
        ({"rope_type": "default"}, (1e4, 1e6, None)),
        ({"rope_type": "default", "rope_theta": 5e4}, (5e4, 1e6, None)),
        ({"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4}, (5e4, 1e6, LINEAR)),
        ({"type": "linear", "factor": 8.0}, (1e4, 1e6, LINEAR)),
        ({"sliding_attention": {"rope_type": "default", "rope_theta": 5e4}}, (5e4, 1e6, None)),
        ({"full_attention": {"rope_theta": 2e6, **LINEAR}}, (1e4, 2e6, LINEAR)),
        ({"sliding_attention": {"rope_theta": 5e4}, "full_attention": {"rope_theta": 2e6}}, (5e4, 2e6, None)),
    ],
)
def test_rope_parameters_of_all_layers_or_of_each_kind_are_read(parameters, expected):
    config = tiny_config(rope_parameters=parameters)
    assert (config.rope_theta, config.rope_theta_global, config.rope_scaling) == expected
    same = tiny_config(rope_theta=expected[0], rope_theta_global=expected[1], rope_scaling=expected[2])
    assert tiny_config(**(same.to_dict() | {"rope_parameters": parameters})).to_dict() == same.to_dict()
    assert same.replace(rope_parameters=parameters).to_dict() == same.to_dict()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rope_theta": 1e4, "rope_theta_local": 2e4}, "rope_theta_local"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "rope_parameters.rope_theta"),
        (
            {"rope_theta_global": 1e6, "rope_parameters": {"full_attention": {"rope_theta": 2e6}}},
            "rope_parameters.rope_theta",
        ),
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "rope_parameters"),
    ],
)
def test_two_spellings_that_disagree_are_refused(fields, field):
    with pytest.raises(ConfigError, match=", which it repeats") as caught:
        tiny_config(**fields)
    assert caught.value.field == field


def test_rope_parameters_that_an_engine_adds_do_not_outlive_a_change():
    config = tiny_config()
    config.standardize_rope_params()
    assert config.rope_parameters == {"rope_theta": 1e4, "rope_type": "default"}
    assert config.replace(rope_theta=5e4).rope_theta == 5e4


def test_released_checkpoints_mean_a_global_position_scale_of_eight():
    assert VaetkiConfig().global_position_scale == 8.0


def test_architecture_is_frozen_and_run_switches_are_not():
    config = tiny_config()
    for field in ARCHITECTURE_FIELDS:
        setattr(config, field, getattr(config, field))
        with pytest.raises(ConfigError, match="replace"):
            setattr(config, field, "something else")
    config.use_cache = False
    config.output_router_logits = True
    assert config.replace(sliding_window=8).sliding_window == 8
    assert config.sliding_window == 16


def test_replacing_the_depth_gives_new_layer_types():
    assert len(tiny_config().replace(num_hidden_layers=13).layer_types) == 13


def test_an_update_is_validated_and_all_or_nothing():
    config = tiny_config()
    config.update({"sliding_window": 32, "max_position_embeddings": 64})
    assert (config.sliding_window, config.max_position_embeddings) == (32, 64)
    with pytest.raises(ConfigError):
        config.update({"sliding_window": 64, "hidden_size": 0})
    assert config.sliding_window == 32


def test_a_saved_file_states_the_whole_architecture_and_reads_back(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(ARCHITECTURE_FIELDS) <= set(saved)
    assert saved["model_type"] == "vaetki"
    assert "_frozen" not in saved
    read = VaetkiConfig.from_pretrained(tmp_path)
    assert all(getattr(read, field) == getattr(config, field) for field in ARCHITECTURE_FIELDS)


def test_a_copy_is_whole_and_frozen():
    copied = copy.deepcopy(tiny_config())
    assert copied.to_dict() == tiny_config().to_dict()
    with pytest.raises(ConfigError):
        copied.hidden_size = 1


def test_unknown_fields_pass_as_in_every_hugging_face_config():
    assert tiny_config(num_nextn_predict_layers=0).num_nextn_predict_layers == 0
