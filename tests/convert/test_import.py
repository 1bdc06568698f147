"""Import: a published directory as a training checkpoint, and the way there and back without a byte changed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from trillion_convert.checkpoint import Form, find
from trillion_convert.export import export, import_checkpoint
from trillion_convert.tensor_files import TensorFiles
from trillion_convert.validation import validate
from trillion_model.errors import CheckpointError
from trillion_training.checkpoint import load_model, load_tokenizer


def tensors(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same_bytes(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert other[name].dtype is tensor.dtype, name
        assert torch.equal(other[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.fixture(scope="module")
def published(exported, tmp_path_factory):
    """A published directory as others would make it: in bfloat16, but for float32 norms, and in shards."""
    folder = tmp_path_factory.mktemp("published") / "theirs"
    shutil.copytree(exported, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({n: t if "norm" in n else t.bfloat16() for n, t in weights.items()}, folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    return folder


def test_an_import_is_what_was_exported(trained, exported, tmp_path):
    import_checkpoint(exported, tmp_path / "base")
    assert_same_bytes(tensors(trained), tensors(tmp_path / "base"))
    validate(tmp_path / "base", Form.TRAIN)


@pytest.mark.parametrize("max_shard_size", ["5GB", "300KB"])
def test_there_and_back_changes_no_byte(published, tmp_path, max_shard_size):
    import_checkpoint(published, tmp_path / "base", max_shard_size=max_shard_size)
    export(tmp_path / "base", tmp_path / "again", max_shard_size=max_shard_size)
    assert_same_bytes(tensors(published), tensors(tmp_path / "again"))


@pytest.mark.parametrize("max_shard_size", ["5GB", "1MB"])
def test_training_starts_from_an_import(exported, model, tmp_path, max_shard_size):
    import_checkpoint(exported, tmp_path / "base", max_shard_size=max_shard_size)
    assert find(tmp_path / "base") == (tmp_path / "base", Form.TRAIN)
    loaded = load_model(tmp_path / "base").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    assert len(load_tokenizer(tmp_path / "base")) == model.config.vocab_size
    assert sorted(path.name for path in (tmp_path / "base" / "tokenizer").iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_stack_whose_experts_have_several_dtypes_needs_a_choice(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "in")
    weights = load_file(folder / "model.safetensors")
    odd = "model.layers.3.mlp.experts.2.down_proj.weight"
    save_file(weights | {odd: weights[odd].bfloat16()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"experts\.down_proj: its parts are bfloat16 and float32; choose one"):
        import_checkpoint(folder, tmp_path / "base")
    import_checkpoint(folder, tmp_path / "base", dtype="float32")
    assert {info.dtype for info in TensorFiles(tmp_path / "base").values()} == {"float32"}


def test_a_training_checkpoint_is_no_published_directory(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.experts\.0\.gate_proj\.weight"):
        import_checkpoint(trained, tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_names_no_files_that_are_not_there(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "in")
    fields = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoConfig": "theirs.Config"}}
    (folder / "config.json").write_text(json.dumps(fields))
    import_checkpoint(folder, tmp_path / "base")
    assert "auto_map" not in json.loads((tmp_path / "base" / "config.json").read_text())
