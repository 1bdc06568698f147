"""What a configuration calls for: a family's chat format; and architectures of Transformers' own.

Trillion-7B-preview's is such a one: known where modules are published as they stand.
"""

import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig

from trillion_model import presets
from trillion_model.architecture import Architecture, chat_format, read_config
from trillion_model.errors import CheckpointError

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_llama_has_the_tensors_that_its_files_hold(tmp_path, tied):
    from safetensors import safe_open

    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    architecture = Architecture.of(read_config(tmp_path))
    assert architecture.published_shapes() == stored
    assert architecture.published_form() is architecture
    assert architecture.class_name == "LlamaForCausalLM"


def test_experts_that_transformers_stacks_have_no_layout_here(tmp_path):
    MixtralConfig(**SHAPE).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'mixtral', which is no family .* another form than its modules"):
        read_config(tmp_path)


def test_a_model_that_continues_no_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="'clip', which is no family of trillion_model"):
        read_config(tmp_path)


@pytest.mark.parametrize(("preset", "thinks"), [("vaetki-nano", True), ("trillion-nano", False)])
def test_a_family_whose_tokenizer_we_train_has_a_chat_format(preset, thinks):
    tokens = chat_format(presets.get(preset))
    assert tokens.EOS in tokens.chat_template()
    assert hasattr(tokens, "THINK_END") is thinks


def test_other_families_and_transformers_own_have_none():
    assert chat_format(presets.get("gravity-16b")) is None
    assert chat_format(LlamaConfig(**SHAPE)) is None
