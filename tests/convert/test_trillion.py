"""Trillion-7B through trillion-convert: what is only trained is left behind, and the rest is the same model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import trillion_model
from support.tiny_trillion import published_weights, tiny_model
from support.training_checkpoint import write_training_checkpoint
from trillion_convert.export import export
from trillion_convert.inspection import inspect_model
from trillion_convert.validation import validate
from trillion_convert.verify.forms import Target
from trillion_convert.verify.run import VerifyOptions, verify
from trillion_model.trillion import Trillion7BConfig

trillion_model.register()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(eos_token_id=tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model, tokenizer):
    """A training checkpoint, which holds the module for the second next token."""
    return write_training_checkpoint(tmp_path_factory.mktemp("trained"), model, tokenizer)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained):
    target = tmp_path_factory.mktemp("exported") / "model"
    export(trained, target)
    return target


def test_an_export_lacks_what_is_only_trained_and_says_so(trained, exported, model):
    assert "mtp.projection.weight" in load_file(trained / "model.safetensors")
    weights = load_file(exported / "model.safetensors")
    expected = published_weights(model, torch.float32)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert json.loads((exported / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_transformers_reads_it_and_computes_the_same(exported, model):
    loaded = AutoModelForCausalLM.from_pretrained(exported).eval()
    assert loaded.mtp is None
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_both_forms_are_valid_and_agree(trained, exported):
    validate(trained)
    validate(exported)
    report = verify(Target.parse(f"train:{trained}"), Target.parse(f"hf:{exported}"), VerifyOptions(max_tokens=8))
    assert report.agree


def test_a_model_card_tells_of_no_experts_windows_or_thoughts(exported):
    card = (exported / "README.md").read_text()
    parameters = sum(t.numel() for t in load_file(exported / "model.safetensors").values())
    assert f"trillion_7b family with {parameters:,} parameters.\n" in card
    assert "Every layer sees every token." in card
    assert not [word for word in ("expert", "window", "think") if word in card]


def test_inspect_counts_what_is_only_trained_apart():
    parameters = inspect_model("trillion-7b").parameters
    assert sum(parameters.total.values()) == 7_763_165_184
    assert sum(parameters.active.values()) == 7_527_206_912
    assert parameters.total["second next token"] == 7_763_165_184 - 7_527_206_912
    assert parameters.active["second next token"] == 0


def test_inspect_finds_the_parts_of_a_training_checkpoint(trained, exported):
    parts, published = inspect_model(str(trained)).parts, inspect_model(str(exported)).parts
    assert parts.pop("second next token")["float32"] > 0
    assert parts == published


def test_a_plain_llama_as_the_released_preview_is_can_be_inspected_and_validated(tmp_path, tokenizer):
    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tokens = {field: getattr(tokenizer, field) for field in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(LlamaConfig(**shape, **tokens, num_attention_heads=2)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    validate(tmp_path)
    inspection = inspect_model(str(tmp_path))
    assert inspection.model_type == "llama"
    assert sum(inspection.parameters.total.values()) == 2 * 320 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert inspection.cache.bytes_per_token("bfloat16") == {"layer": 128, "local": 0, "global": 256}
    assert inspection.stored == {"float32": sum(inspection.parameters.total.values()) * 4}


def test_the_published_configuration_is_the_default_without_more():
    assert Trillion7BConfig().num_nextn_predict_layers == 0
