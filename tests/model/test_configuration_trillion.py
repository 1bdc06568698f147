"""Trillion-7B's configuration: every field checked, files of other spellings read, the architecture frozen."""

import json

import pytest

from support.tiny_trillion import tiny_config
from trillion_model import presets
from trillion_model.errors import ConfigError
from trillion_model.trillion import Trillion7BConfig

WRONG = [
    ("vocab_size", 0, "a whole number above 0"),
    ("hidden_size", 65, "a multiple of num_attention_heads (2)"),
    ("intermediate_size", 1.5, "a whole number above 0"),
    ("num_hidden_layers", None, "a whole number above 0"),
    ("num_attention_heads", True, "a whole number above 0"),
    ("num_key_value_heads", 3, "a divisor of num_attention_heads (2)"),
    ("head_dim", 31, "even"),
    ("hidden_act", "gelu", "'silu'"),
    ("rms_norm_eps", 0, "a number above 0"),
    ("initializer_range", float("nan"), "a number above 0"),
    ("rope_theta", -1.0, "a number above 0"),
    ("max_position_embeddings", 0, "a whole number above 0"),
    ("num_nextn_predict_layers", 2, "0 or 1"),
    ("num_nextn_predict_layers", True, "0 or 1"),
    ("tie_word_embeddings", True, "false"),
    ("bos_token_id", 320, "from 0 to vocab_size - 1 (319)"),
    ("use_cache", "yes", "true or false"),
    ("output_mtp_loss", 1, "true or false"),
    ("mtp_loss_coef", -0.1, "a number of 0 or more"),
    ("rope_parameters", {"rope_type": "yarn", "factor": 8.0}, "an object with the rope_type 'default'"),
    # Fields of other architectures' files, which Trillion-7B has only one meaning for.
    ("attention_bias", True, "Trillion-7B has no other form"),
    ("mlp_bias", True, "Trillion-7B has no other form"),
    ("rope_scaling", {"rope_type": "linear", "factor": 8.0}, "Trillion-7B has no other form"),
    ("sliding_window", 4096, "Trillion-7B has no other form"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG, ids=[f"{f}={v}" for f, v, _ in WRONG])
def test_a_wrong_field_is_named_with_its_value_and_what_was_expected(field, value, expected):
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{field: value})
    assert caught.value.field == field
    assert f"{field} is {value!r}, but must be " in str(caught.value)
    assert expected in str(caught.value)


def test_every_architecture_field_has_a_wrong_value_above():
    assert set(Trillion7BConfig.architecture_fields) <= {field for field, _, _ in WRONG}


def test_defaults_are_the_report_s():
    config = Trillion7BConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (4096, 32, 11_008)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (32, 32, 128)
    assert (config.vocab_size, config.max_position_embeddings, config.rope_theta) == (128_256, 4096, 100_000.0)
    assert config.cached_numbers == 2 * 32 * 128
    assert not any(map(config.is_local, range(32)))


def test_the_context_extension_changes_length_and_rope_base_only():
    short, long = presets.get("trillion-7b"), presets.get("trillion-7b").long_context()
    changed = {field for field in short.architecture_fields if getattr(short, field) != getattr(long, field)}
    assert changed == {"max_position_embeddings", "rope_theta"}
    assert (long.max_position_embeddings, long.rope_theta) == (32_768, 1_000_000.0)


def test_the_published_form_lacks_what_only_training_has():
    trained = tiny_config(output_mtp_loss=True)
    assert trained.published().num_nextn_predict_layers == 0
    assert trained.published().output_mtp_loss is False
    assert trained.num_nextn_predict_layers == 1


@pytest.mark.parametrize(
    "fields",
    [{"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}],
    ids=["Transformers 4", "Transformers 5"],
)
def test_the_rope_base_has_two_places(fields):
    assert tiny_config(**fields).rope_theta == 5e5


def test_two_rope_bases_that_disagree_are_refused():
    with pytest.raises(ConfigError, match=r"rope_parameters\.rope_theta is 20000\.0.* the same as rope_theta"):
        tiny_config(rope_theta=1e4, rope_parameters={"rope_theta": 2e4})


def test_sizes_of_a_head_follow_a_change_of_heads():
    changed = tiny_config().replace(num_attention_heads=4)
    assert (changed.head_dim, changed.num_key_value_heads) == (16, 4)
    assert tiny_config(head_dim=64).replace(num_hidden_layers=2).head_dim == 64


def test_architecture_is_frozen_and_run_switches_are_not():
    config = tiny_config()
    with pytest.raises(ConfigError, match="replace"):
        config.rope_theta = 1e6
    config.output_mtp_loss = True
    config.mtp_loss_coef = 0.1
    assert config.mtp_loss_coef == 0.1


def test_a_saved_file_states_the_whole_architecture_and_reads_back(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(config.architecture_fields) <= set(saved)
    assert saved["model_type"] == "trillion_7b"
    read = Trillion7BConfig.from_pretrained(tmp_path)
    assert all(getattr(read, field) == getattr(config, field) for field in config.architecture_fields)
