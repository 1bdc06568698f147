"""What validate finds nothing wrong with, and how it says what it found."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from trillion_convert.cli import app
from trillion_convert.export import export
from trillion_convert.forms import Form
from trillion_convert.quantize.directory import quantize
from trillion_convert.quantize.recipe import Recipe, Scheme
from trillion_convert.tensor_files import TensorFiles
from trillion_convert.validation import survey


@pytest.mark.parametrize("scheme", Scheme)
def test_every_quantised_directory_is_whole(exported, tmp_path, scheme):
    quantize(exported, tmp_path / "out", Recipe(scheme, group_size=32))
    assert survey(tmp_path / "out").problems == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_is_whole(trained, tmp_path, dtype):
    export(trained, tmp_path / "out", dtype=dtype, max_shard_size="1MB")
    found = survey(tmp_path / "out")
    assert (found.problems, found.form, found.tensors) == ((), Form.HF, 179)


def test_a_router_may_stay_in_float32(trained, tmp_path):
    export(trained, tmp_path / "out", dtype="bfloat16")
    (tmp_path / "out" / "manifest.json").unlink()
    weights = load_file(tmp_path / "out" / "model.safetensors")
    save_file(
        {n: t.float() if ".mlp.gate." in n else t for n, t in weights.items()}, tmp_path / "out/model.safetensors"
    )
    assert survey(tmp_path / "out").problems == ()


def test_a_hub_cache_may_link_to_its_blobs(exported, tmp_path):
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    (tmp_path / "models--x" / "blobs").mkdir(parents=True)
    shutil.copytree(exported, snapshot)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = tmp_path / "models--x" / "blobs" / str(number)
        file.rename(blob)
        file.symlink_to(f"../../blobs/{number}")
    assert survey(snapshot).problems == ()


def test_what_rests_on_a_wrong_field_is_no_problem_of_its_own(exported, tmp_path):
    source = shutil.copytree(exported, tmp_path / "in", ignore=shutil.ignore_patterns("manifest.json"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": "seven", "sliding_window": 0}))
    problems = survey(source).problems
    assert [problem.split(",")[0] for problem in problems] == [
        "num_hidden_layers is 'seven'",
        "sliding_window is 0",
    ]


def test_a_tensor_is_read_in_pieces(exported):
    files = TensorFiles(exported)
    head = load_file(exported / "model.safetensors")["lm_head.weight"]
    pieces = list(files.pieces("lm_head.weight", 1000))
    assert [piece.numel() for piece in pieces] == [1000] * 20 + [480]
    assert torch.equal(torch.cat(pieces), head.flatten())


def test_the_command_says_what_it_found_and_writes_it_down(exported, tmp_path):
    source = shutil.copytree(exported, tmp_path / "in", ignore=shutil.ignore_patterns("manifest.json"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"bos_token_id": 5, "pad_token_id": 6}))
    result = CliRunner().invoke(app, ["validate", str(source), "--json", str(tmp_path / "problems.json")])
    assert result.exit_code == 1 and result.stdout == ""
    lines = result.stderr.splitlines()
    found = json.loads((tmp_path / "problems.json").read_text())
    assert lines[:-1] == [f"trillion-convert: {problem}" for problem in found["problems"]]
    assert lines[-1] == f"trillion-convert: {source} has {len(found['problems'])} problem(s)"
    assert (found["form"], found["tensors"]) == ("hf", 179)
    assert any(problem.startswith("bos_token_id is 5 in config.json") for problem in found["problems"])
