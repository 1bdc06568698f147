"""Whatever is wrong with a checkpoint is refused by name, and nothing is written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from trillion_convert.checkpoint import Form, open_checkpoint
from trillion_convert.export import export
from trillion_convert.validation import validate
from trillion_model.errors import CheckpointError, ConfigError

QUERY = "model.layers.3.self_attn.q_a_proj.weight"
EXPERTS = "model.layers.3.mlp.experts.down_proj"


@pytest.fixture
def checkpoint(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "in")


@pytest.fixture
def sharded(trained, tmp_path):
    """A published directory in shards."""
    export(trained, tmp_path / "in", max_shard_size="1MB")
    return tmp_path / "in"


def change(folder, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def change_json(path, edit) -> None:
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


def refused(folder, match, error=CheckpointError):
    with pytest.raises(error, match=match):
        export(folder, folder.parent / "out")
    assert [path.name for path in folder.parent.iterdir()] == ["in"]


def test_a_missing_tensor(checkpoint):
    change(checkpoint, lambda weights: weights.pop(EXPERTS))
    refused(checkpoint, rf"lacks {EXPERTS}, which its configuration calls for")


def test_an_unknown_tensor(checkpoint):
    change(checkpoint, lambda weights: weights.update({"model.layers.3.mlp.bias": torch.zeros(1)}))
    refused(checkpoint, r"has model\.layers\.3\.mlp\.bias, which no part of the architecture reads")


def test_a_layer_more_than_the_configuration_says(checkpoint):
    change(
        checkpoint,
        lambda weights: weights.update({f"model.layers.7.mlp.x{i}": torch.zeros(1) for i in range(8)}),
    )
    refused(checkpoint, r"model\.layers\.7\.mlp\.x0, .* and 3 more tensors")


def test_a_wrong_shape(checkpoint):
    change(checkpoint, lambda weights: weights.update({QUERY: torch.zeros(32, 65)}))
    refused(checkpoint, rf"{QUERY}: shape is \(32, 65\), but the configuration gives \(32, 64\)")


def test_a_dtype_that_weights_do_not_have(checkpoint):
    change(checkpoint, lambda weights: weights.update({QUERY: torch.zeros(32, 64, dtype=torch.int64)}))
    refused(checkpoint, f"{QUERY}: stored as I64, but weights are one of F32, BF16, F16")


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_file(checkpoint, kept):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(checkpoint, r"model\.safetensors is truncated or not safetensors")


def test_bytes_after_the_last_tensor(checkpoint):
    with (checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    refused(checkpoint, r"model\.safetensors is truncated or not safetensors")


def test_pickle_files_only(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    refused(checkpoint, r"pickle files only \(pytorch_model\.bin\), which can run code")


def test_no_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, r"holds no weights: expected model\.safetensors or model\.safetensors\.index\.json")


def test_no_configuration(checkpoint):
    (checkpoint / "config.json").unlink()
    refused(checkpoint, r"has no config\.json")


def test_a_configuration_that_is_not_json(checkpoint):
    (checkpoint / "config.json").write_text("{")
    refused(checkpoint, r"config\.json is not JSON")


@pytest.mark.parametrize("model_type", ["mixtral", "vaetkii", None, ["vaetki"]])
def test_a_family_that_is_not_ours(checkpoint, model_type):
    change_json(checkpoint / "config.json", lambda config: config.update(model_type=model_type))
    refused(checkpoint, "which is no family of trillion_model")


def test_a_wrong_field(checkpoint):
    change_json(checkpoint / "config.json", lambda config: config.update(q_lora_rank=-1))
    refused(checkpoint, "q_lora_rank is -1, but must be a whole number above 0", ConfigError)


def test_no_tokenizer(checkpoint):
    shutil.rmtree(checkpoint / "tokenizer")
    refused(checkpoint, r"holds no tokenizer: expected tokenizer\.json")


def test_a_damaged_tokenizer(checkpoint):
    (checkpoint / "tokenizer" / "tokenizer.json").write_text("{")
    refused(checkpoint, "the tokenizer in .* cannot be read")


def test_a_tokenizer_with_more_tokens_than_embeddings(checkpoint):
    change_json(checkpoint / "config.json", lambda config: config.update(vocab_size=319))
    cut = {name: torch.zeros(319, 64) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    change(checkpoint, lambda weights: weights.update(cut))
    refused(checkpoint, r"has 320 tokens, but vocab_size in config\.json is 319")


def test_an_end_token_that_is_not_the_tokenizers(checkpoint):
    change_json(checkpoint / "config.json", lambda config: config.update(eos_token_id=5))
    refused(checkpoint, r"eos_token_id is 5 in config\.json, but the tokenizer in .* has 2 \(<\|END\|>\)")


def test_published_names_are_no_training_checkpoint(exported, tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        open_checkpoint(exported, Form.TRAIN)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", 7])
def test_an_index_that_leaves_the_directory(sharded, file):
    change_json(
        sharded / "model.safetensors.index.json", lambda index: index["weight_map"].update({"lm_head.weight": file})
    )
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: .* but shards lie beside the index"):
        open_checkpoint(sharded)


def test_an_index_that_names_a_pickle(sharded):
    change_json(
        sharded / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({"lm_head.weight": "pytorch_model.bin"}),
    )
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: .* but only safetensors are read"):
        open_checkpoint(sharded)


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00004\.safetensors is missing, but"):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded):
    first, second = (sharded / f"model-0000{i}-of-00004.safetensors" for i in (1, 2))
    again = "model.embed_tokens.weight"
    save_file(load_file(second) | {again: load_file(first)[again]}, second)
    with pytest.raises(CheckpointError, match=rf"{again}: stored twice, in {first.name} and in {second.name}"):
        open_checkpoint(sharded)


def test_a_tensor_that_the_index_does_not_list(sharded):
    change_json(sharded / "model.safetensors.index.json", lambda index: index["weight_map"].pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: stored in .*, but .* does not list it"):
        open_checkpoint(sharded)


def test_a_tensor_that_is_not_where_the_index_says(sharded):
    first = "model-00001-of-00004.safetensors"
    change_json(
        sharded / "model.safetensors.index.json", lambda index: index["weight_map"].update({"lm_head.weight": first})
    )
    with pytest.raises(CheckpointError, match=rf"lm_head\.weight: .* says it is in {first}, but it is not"):
        open_checkpoint(sharded)


def test_a_tensor_that_the_index_lists_twice(sharded):
    path = sharded / "model.safetensors.index.json"
    entry = '"lm_head.weight": "model-00001-of-00004.safetensors", '
    path.write_text(path.read_text().replace('"weight_map": {', f'"weight_map": {{{entry}'))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: listed twice"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', "{", '{"weight_map": []}'])
def test_an_index_without_a_map(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json (has no weight_map|is not JSON)"):
        open_checkpoint(sharded)


def test_an_index_beside_a_whole_file(sharded, exported):
    shutil.copy(exported / "model.safetensors", sharded)
    with pytest.raises(CheckpointError, match="holds both"):
        open_checkpoint(sharded)


def test_validate_reads_both_forms(trained, exported, sharded):
    assert [validate(path).form for path in (trained, exported, sharded)] == [Form.TRAIN, Form.HF, Form.HF]


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("dtype", "bfloat16", r"stored as float32, but dtype in config\.json is bfloat16"),
        ("architectures", ["LlamaForCausalLM"], r"must be \['VaetkiForCausalLM'\]"),
    ],
)
def test_validate_holds_the_configuration_against_the_tensors(sharded, field, value, match):
    change_json(sharded / "config.json", lambda config: config.update({field: value}))
    with pytest.raises(CheckpointError, match=match):
        validate(sharded)


def test_validate_finds_a_number_that_is_none(checkpoint):
    change(checkpoint, lambda weights: weights[QUERY].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=f"{QUERY}: holds numbers"):
        validate(checkpoint)
