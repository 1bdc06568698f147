"""Megatron-Core's names by the command line's own path: there and back without a changed bit, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from support.tiny_vaetki import published_weights, tiny_model
from support.training_checkpoint import write_training_checkpoint
from trillion_convert import megatron
from trillion_convert.checkpoint import open_checkpoint
from trillion_convert.cli import app
from trillion_convert.errors import ConvertError
from trillion_convert.export import export, import_checkpoint
from trillion_convert.forms import Form
from trillion_convert.inspection import inspect_model
from trillion_convert.validation import survey
from trillion_model import presets
from trillion_model.architecture import Architecture
from trillion_model.errors import CheckpointError


@pytest.fixture(scope="module")
def in_megatron(exported, tmp_path_factory):
    """The published directory in Megatron-Core's names."""
    target = tmp_path_factory.mktemp("megatron") / "model"
    assert CliRunner().invoke(app, ["export", str(exported), str(target), "--to", "megatron"]).exit_code == 0
    return target


def assert_same_tensors(folder, other) -> None:
    ours, theirs = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


def test_published_to_megatron_and_back_is_byte_for_byte(exported, in_megatron, tmp_path):
    command = ["import", str(in_megatron), str(tmp_path / "back"), "--from", "megatron", "--to", "hf"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert_same_tensors(exported, tmp_path / "back")


def test_the_training_form_to_megatron_and_back_is_byte_for_byte(trained, in_megatron, tmp_path):
    export(trained, tmp_path / "megatron", to=Form.MEGATRON)
    assert_same_tensors(in_megatron, tmp_path / "megatron")
    import_checkpoint(tmp_path / "megatron", tmp_path / "train", source_form=Form.MEGATRON)
    assert_same_tensors(trained, tmp_path / "train")


def test_shards_and_half_precision_come_back_too(exported, tmp_path):
    export(exported, tmp_path / "megatron", to=Form.MEGATRON, dtype="bfloat16", max_shard_size="500KB")
    import_checkpoint(tmp_path / "megatron", tmp_path / "back", source_form=Form.MEGATRON, to=Form.HF)
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in load_file(exported / "model.safetensors").items():
        assert torch.equal(back[name], tensor.bfloat16()), name


def test_the_directory_is_whole(in_megatron):
    assert survey(in_megatron).problems == ()
    checkpoint = open_checkpoint(in_megatron)
    assert checkpoint.form is Form.MEGATRON
    assert "decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in checkpoint.tensors
    assert "decoder.layers.1.pre_mlp_layernorm.weight" in checkpoint.tensors
    assert checkpoint.tensors["decoder.layers.1.mlp.experts.experts.linear_fc1.weight"].shape == (4, 64, 64)


def test_parts_are_those_of_the_published_form(exported, in_megatron):
    assert inspect_model(str(in_megatron)).parts == inspect_model(str(exported)).parts


def test_layers_in_one_tensor_are_read(tokenizer, tmp_path):
    model = tiny_model(eos_token_id=tokenizer.eos_token_id, first_k_dense_replace=0, num_hidden_layers=3)
    (tmp_path / "trained").mkdir()
    export(write_training_checkpoint(tmp_path / "trained", model, tokenizer), tmp_path / "hf")
    stacked = shutil.copytree(tmp_path / "hf", tmp_path / "stacked", ignore=shutil.ignore_patterns("manifest.json"))
    architecture, published = Architecture.of(model.config), published_weights(model, torch.float32)
    table = megatron.layout(architecture, stacked=True)
    shapes = megatron.shapes(architecture, stacked=True)
    tensors = {name: table.to_module(name, shape, published.__getitem__) for name, shape in shapes.items()}
    save_file(tensors, stacked / "model.safetensors")
    assert open_checkpoint(stacked).form is Form.MEGATRON_STACKED
    import_checkpoint(stacked, tmp_path / "back", source_form=Form.MEGATRON_STACKED, to=Form.HF)
    assert_same_tensors(tmp_path / "hf", tmp_path / "back")


def test_dense_layers_cannot_be_in_one_tensor_with_experts(model):
    with pytest.raises(ConvertError, match="stacks layers only where all are alike"):
        megatron.shapes(Architecture.of(model.config), stacked=True)


def test_a_family_without_a_table_is_refused():
    with pytest.raises(ConvertError, match="gravity_moe has no table of Megatron-Core's names; vaetki has one"):
        megatron.layout(Architecture.of(presets.get("gravity-16b")))


def test_what_megatron_saves_itself_is_not_read(in_megatron, tmp_path):
    source = shutil.copytree(in_megatron, tmp_path / "in")
    (source / "model.safetensors").rename(source / "__0_0.distcp")
    (source / ".metadata").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"holds \.distcp files, whose \.metadata is a pickle"):
        import_checkpoint(source, tmp_path / "out", source_form=Form.MEGATRON)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_published_directory_is_none_of_megatrons(exported, tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks embedding\.word_embeddings\.weight"):
        import_checkpoint(exported, tmp_path / "out", source_form=Form.MEGATRON)
