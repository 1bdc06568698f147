"""Export: names, exact numbers, shards, dtypes, everything a served directory needs, and a target that is whole or
absent."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import trillion_model
from support.tiny_vaetki import published_weights
from trillion_convert.errors import ConvertError, TargetError
from trillion_convert.export import export, import_checkpoint
from trillion_convert.forms import Form
from trillion_convert.staging import staged_directory
from trillion_convert.streaming import Listener
from trillion_convert.tensor_files import TensorFiles
from trillion_convert.validation import validate
from trillion_model.errors import CheckpointError
from trillion_model.vaetki import chat_format

trillion_model.register()


def assert_loads_exactly(folder, model):
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_transformers_reads_an_export_bit_for_bit(exported, model):
    assert_loads_exactly(exported, model)


def test_names_are_the_published_ones_and_the_file_is_plain_safetensors(exported, model):
    weights = load_file(exported / "model.safetensors")
    expected = published_weights(model, torch.float32)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_hold_every_tensor_once_and_none_is_larger_than_asked(trained, tmp_path, model):
    report = export(trained, tmp_path / "out", max_shard_size="500KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i:05}-of-{report.files:05}.safetensors" for i in range(1, report.files + 1)]
    assert report.files > 5
    for shard in shards:
        tensors = load_file(tmp_path / "out" / shard)
        assert {index["weight_map"][name] for name in tensors} == {shard}
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 500_000
    assert index["metadata"]["total_size"] == report.nbytes == sum(p.nbytes for p in model.parameters())
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert_loads_exactly(tmp_path / "out", model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_rounds_each_number_once(trained, tmp_path, model, dtype):
    export(trained, tmp_path / "out", dtype=dtype)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in published_weights(model, torch.float32).items():
        assert torch.equal(weights[name], tensor.to(getattr(torch, dtype))), name
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)
    validate(tmp_path / "out")


def test_a_checkpoint_that_was_trained_in_bfloat16_stays_so(trained, tmp_path, model):
    shutil.copytree(trained, tmp_path / "in")
    save_file({n: t.bfloat16() for n, t in model.state_dict().items()}, tmp_path / "in" / "model.safetensors")
    export(tmp_path / "in", tmp_path / "out")
    assert {info.dtype for info in TensorFiles(tmp_path / "out").values()} == {"bfloat16"}


def test_tensors_keep_their_own_dtypes_unless_one_is_chosen(trained, tmp_path, model):
    shutil.copytree(trained, tmp_path / "in")
    mixed = {n: t if "norm" in n else t.bfloat16() for n, t in model.state_dict().items()}
    save_file(mixed, tmp_path / "in" / "model.safetensors")
    export(tmp_path / "in", tmp_path / "kept")
    dtypes = {name: info.dtype for name, info in TensorFiles(tmp_path / "kept").items()}
    assert {dtype for name, dtype in dtypes.items() if "norm" in name} == {"float32"}
    assert {dtype for name, dtype in dtypes.items() if "norm" not in name} == {"bfloat16"}
    assert AutoConfig.from_pretrained(tmp_path / "kept").dtype == torch.bfloat16
    export(tmp_path / "in", tmp_path / "out", dtype="float32")
    assert {info.dtype for info in TensorFiles(tmp_path / "out").values()} == {"float32"}


@pytest.mark.parametrize(("number", "dtype"), [(float("nan"), None), (float("inf"), None), (1e5, "float16")])
def test_a_number_that_is_none_is_refused_by_name(trained, tmp_path, model, number, dtype):
    shutil.copytree(trained, tmp_path / "in")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["model.layers.2.mlp.experts.gate_up_proj"][1, -1, 0] = number
    save_file(weights, tmp_path / "in" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.experts\.1\.up_proj\.weight: holds numbers"):
        export(tmp_path / "in", tmp_path / "out", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_small_files_make_the_directory_servable(exported, model, tokenizer):
    config = json.loads((exported / "config.json").read_text())
    assert (config["architectures"], config["model_type"], config["dtype"]) == (
        ["VaetkiForCausalLM"],
        "vaetki",
        "float32",
    )
    assert config["sliding_window"] == 16 and config["global_position_scale"] == 8.0
    loaded = AutoTokenizer.from_pretrained(exported)
    messages = [{"role": "user", "content": "안녕? 347"}]
    render = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    assert loaded.apply_chat_template(messages, **render) == tokenizer.apply_chat_template(messages, **render)
    generation = GenerationConfig.from_pretrained(exported)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)


def test_the_model_card_tells_sizes_and_leaves_the_licence_open(exported, model):
    card = (exported / "README.md").read_text()
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert "| routed experts a token | 2 |" in card
    assert "trillion-serve serve ./model" in card and "vllm serve ./model" in card
    assert "\nlicense:" not in card


def test_a_tokenizer_without_a_template_gets_ours(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "in")
    (tmp_path / "in" / "tokenizer" / "chat_template.jinja").unlink()
    export(tmp_path / "in", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == chat_format.chat_template()


@pytest.mark.parametrize("to", [Form.HF, Form.MEGATRON])
def test_what_is_exported_already_is_told_how_to_be_written_anew(trained, tmp_path, to):
    export(trained, tmp_path / "first", to=to)
    match = rf"first is in {to} form.* not a training checkpoint .*import .*first TARGET --from {to} --to hf$"
    with pytest.raises(ConvertError, match=match):
        export(tmp_path / "first", tmp_path / "second")
    import_checkpoint(tmp_path / "first", tmp_path / "second", source_form=to, to=Form.HF, dtype="bfloat16")
    assert {info.dtype for info in TensorFiles(tmp_path / "second").values()} == {"bfloat16"}


def test_a_llama_is_published_already(tmp_path):
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    with pytest.raises(ConvertError, match="llama is in hf form already, and not a training checkpoint"):
        export(tmp_path / "llama", tmp_path / "out")


def test_progress_ends_at_the_total(trained, tmp_path):
    seen = []
    listener = Listener(on_bytes=lambda done, total: seen.append((done, total)))
    report = export(trained, tmp_path / "out", listener=listener)
    assert seen == sorted(seen) and seen[-1] == (report.nbytes, report.nbytes)


def test_a_run_means_its_last_checkpoint(trained, tmp_path, model):
    shutil.copytree(trained, tmp_path / "run" / "checkpoints" / "step-00000001")
    (tmp_path / "run" / "last").symlink_to("checkpoints/step-00000001")
    export(tmp_path / "run", tmp_path / "run" / "hf")
    assert_loads_exactly(tmp_path / "run" / "hf", model)


def test_a_target_in_use_is_refused_and_kept(trained, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(TargetError, match="is not empty; choose another directory, or replace it with --force"):
        export(trained, target)
    with pytest.raises(TargetError, match=r"has no config\.json.*--force does not delete it"):
        export(trained, target, force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_force_replaces_an_earlier_export_whole(trained, tmp_path, model):
    target = tmp_path / "out"
    export(trained, target, max_shard_size="500KB")
    export(trained, target, force=True)
    assert [path.name for path in target.glob("*.safetensors*")] == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_loads_exactly(target, model)


def test_an_empty_target_is_taken_and_missing_parents_are_made(trained, tmp_path, model):
    (tmp_path / "empty").mkdir()
    export(trained, tmp_path / "empty")
    export(trained, tmp_path / "a" / "b" / "c")
    assert_loads_exactly(tmp_path / "a" / "b" / "c", model)


@pytest.mark.parametrize("inside", [".", "hf", ".."])
def test_a_target_that_overlaps_the_source_is_refused(trained, tmp_path, inside):
    source = shutil.copytree(trained, tmp_path / "run" / "checkpoint")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TargetError, match="overlaps"):
        export(source, source / inside, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_or_a_link_in_the_way_is_refused(trained, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(TargetError, match="exists and is not a directory"):
            export(trained, tmp_path / name, force=True)


def test_a_disk_that_is_too_small_is_seen_first(trained, tmp_path):
    with (
        pytest.raises(TargetError, match=r"needs 1152921504\.61 GB, but the disk has"),
        staged_directory(tmp_path / "out", sources=[trained], needed=2**60, force=False, plan="p"),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_the_old_export(trained, tmp_path, model):
    target = tmp_path / "out"
    export(trained, target)
    with (
        pytest.raises(KeyboardInterrupt),
        staged_directory(target, sources=[trained], needed=1, force=True, plan="p") as stage,
    ):
        (stage.folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_loads_exactly(target, model)


def test_a_shard_size_that_is_none_is_refused(trained, tmp_path):
    with pytest.raises(ConvertError, match=r"--max-shard-size '5 bananas' is no size; write it like 5GB"):
        export(trained, tmp_path / "out", max_shard_size="5 bananas")
    assert list(tmp_path.iterdir()) == []
