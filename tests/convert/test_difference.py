"""Two checkpoints compared tensor by tensor: exact figures, whatever the form, and the furthest apart first."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.folded import unfolded
from trillion_convert.cli import app
from trillion_convert.difference import compare, render
from trillion_convert.errors import ConvertError
from trillion_convert.export import export
from trillion_convert.forms import Form
from trillion_convert.quantize.directory import quantize
from trillion_convert.quantize.recipe import Recipe, Scheme
from trillion_model.errors import CheckpointError

QUERY = "model.layers.3.self_attn.q_a_proj.weight"
EXPERT = "model.layers.4.mlp.experts.2.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def other(exported, tmp_path):
    """A copy of the published directory, to change."""
    return shutil.copytree(exported, tmp_path / "other")


def change(folder, **tensors) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.update({name: edit(weights[name]) for name, edit in tensors.items()})
    save_file(weights, folder / "model.safetensors")


def test_a_checkpoint_is_equal_to_itself_in_every_form(trained, exported, tmp_path):
    export(exported, tmp_path / "megatron", to=Form.MEGATRON)
    export(trained, tmp_path / "shards", max_shard_size="500KB")
    for other in (exported, trained, tmp_path / "megatron", tmp_path / "shards"):
        found = compare(exported, other)
        assert found.equal and len(found.tensors) == 179
        assert {(t.largest, t.relative) for t in found.tensors} == {(0.0, 0.0)}


def test_the_figures_are_those_of_the_definition(exported, other):
    change(other, **{QUERY: lambda t: t * 1.5, EXPERT: lambda t: t + torch.linspace(0, 1, t.numel()).view(t.shape)})
    found = compare(exported, other)
    assert not found.equal
    assert [tensor.name for tensor in found.tensors if not tensor.equal] == [EXPERT, QUERY]
    before, after = load_file(exported / "model.safetensors"), load_file(other / "model.safetensors")
    for tensor in found.tensors[:2]:
        a, b = before[tensor.name].double().flatten(), after[tensor.name].double().flatten()
        assert tensor.largest == (a - b).abs().max().item()
        assert tensor.relative == pytest.approx(((a - b).norm() / a.norm()).item(), rel=1e-12)
        assert tensor.cosine == pytest.approx((a @ b / (a.norm() * b.norm())).item(), rel=1e-12)
    assert found.tensors[1].relative == pytest.approx(0.5) and found.tensors[1].cosine == pytest.approx(1.0)
    parts = {part.part: part for part in found.parts}
    assert (parts["attention"].tensors, parts["attention"].equal) == (35, 34)
    assert parts["head"].largest == 0.0


def test_a_tensor_of_zeros_has_no_angle_and_is_infinitely_far(exported, other, tmp_path):
    change(other, **{NORM: torch.zeros_like})
    zero, full = compare(other, exported).tensors[0], compare(exported, other).tensors[0]
    assert (zero.name, zero.relative, zero.cosine) == (NORM, math.inf, None)
    assert (full.relative, full.cosine) == (1.0, None)
    assert json.loads(compare(other, exported).to_json())["tensors"][0]["relative"] is None


def test_pieces_change_nothing(exported, other, monkeypatch):
    change(other, **{QUERY: lambda t: t * 1.5})
    whole = compare(exported, other).tensors[0]
    monkeypatch.setattr("trillion_convert.difference._PIECE", 100)
    pieces = compare(exported, other).tensors[0]
    assert (pieces.name, pieces.largest) == (whole.name, whole.largest)
    assert pieces.relative == pytest.approx(whole.relative, rel=1e-12)


def test_a_dtype_costs_what_rounding_costs(trained, exported, tmp_path):
    export(trained, tmp_path / "half", dtype="bfloat16")
    found = compare(exported, tmp_path / "half")
    assert {tensor.dtypes for tensor in found.tensors} == {("float32", "bfloat16")}
    assert 0 < found.tensors[0].relative < 2**-8
    assert found.tensors[0].cosine > 0.99999


def test_a_quantised_directory_is_compared_as_the_numbers_that_it_stands_for(exported, tmp_path):
    quantize(exported, tmp_path / "int8", Recipe(Scheme.INT8_W8A8))
    found = {tensor.name: tensor for tensor in compare(exported, tmp_path / "int8").tensors}
    assert found[QUERY].dtypes == ("float32", "int8")
    assert 0 < found[QUERY].relative < 0.02
    assert found[NORM].equal


def test_tensors_of_one_side_and_other_shapes_are_named(exported, tmp_path, tokenizer):
    from support.tiny_vaetki import tiny_model
    from support.training_checkpoint import write_training_checkpoint

    (tmp_path / "small").mkdir()
    small = tiny_model(eos_token_id=tokenizer.eos_token_id, num_hidden_layers=6, q_lora_rank=16)
    write_training_checkpoint(tmp_path / "small", small, tokenizer)
    found = compare(exported, tmp_path / "small")
    assert {name.split(".")[2] for name in found.only_in_a} == {"6"} and found.only_in_b == ()
    assert found.shapes[QUERY] == ((32, 64), (16, 64))
    assert QUERY not in {tensor.name for tensor in found.tensors}
    assert compare(tmp_path / "small", exported).only_in_b == found.only_in_a


def test_the_command_prints_and_writes_the_furthest_first(exported, other, tmp_path):
    from typer.testing import CliRunner

    change(other, **{QUERY: lambda t: t * 1.5})
    arguments = ["inspect", str(exported), "--diff", str(other), "--json", str(tmp_path / "diff.json")]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert QUERY in result.output and EXPERT not in result.output
    figures = json.loads((tmp_path / "diff.json").read_text())
    assert figures["tensors"][0]["name"] == QUERY and figures["parts"][0]["part"] == "attention"
    assert figures["equal"] is False


def test_no_name_is_cut_where_lines_are_short(exported, other, monkeypatch, capsys):
    change(other, **{EXPERT: lambda t: t * 1.5})
    monkeypatch.setenv("COLUMNS", "80")
    render(compare(exported, other))
    out = capsys.readouterr().out
    assert EXPERT in unfolded(out) and "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_presets_have_no_weights_to_compare(exported):
    for pair in (("vaetki-nano", "vaetki-nano"), (exported, "vaetki-nano")):
        with pytest.raises(ConvertError, match="vaetki-nano is a preset, which has no weights to compare"):
            compare(*map(Path, pair))


def test_a_damaged_side_is_refused(exported, other):
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        compare(exported, other)
