"""The command line: its surface frozen, errors of ours in one line, exit codes."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from trillion_convert.cli import app, main
from trillion_convert.export import export
from trillion_convert.streaming import Listener
from trillion_convert.tensor_files import TensorFiles

SURFACE = {
    "export": ["source", "target", "--to", "--dtype", "--max-shard-size", "--remote-code", "--force"],
    "import": ["source", "target", "--from", "--to", "--dtype", "--max-shard-size", "--force"],
    "merge": ["paths", "--weights", "--dtype", "--max-shard-size", "--force"],
    "quantize": ["source", "target", "--scheme", "--group-size", "--text", "--max-shard-size", "--force"],
    "verify": ["a", "b", "--prompts", "--max-tokens", "--dtype", "--tolerance", "--remote-code", "--json"],
    "inspect": ["model", "--diff", "--json"],
    "validate": ["path", "--json"],
}


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["trillion-convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
        raise SystemExit(0)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_the_surface_is_frozen():
    commands = typer.main.get_command(app).commands
    surface = {
        name: [p.opts[0] if p.param_type_name == "option" else p.name for p in command.params]
        for name, command in commands.items()
    }
    assert surface == SURFACE


@pytest.mark.parametrize("command", SURFACE)
def test_help_has_an_example(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert f"Example: trillion-convert {command} " in " ".join(out.split())


def test_export_says_what_it_wrote_and_is_quiet_off_a_terminal(monkeypatch, capsys, trained, tmp_path):
    code, out, err = run(monkeypatch, capsys, "export", trained, tmp_path / "out", "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'out'}: 179 tensors in 1 file(s), 1,605,696 bytes of weights\n"


def test_dtypes_have_a_short_spelling(monkeypatch, capsys, trained, tmp_path):
    assert run(monkeypatch, capsys, "export", trained, tmp_path / "out", "--dtype", "bf16")[0] == 0
    assert {info.dtype for info in TensorFiles(tmp_path / "out").values()} == {"bfloat16"}


def test_import_says_what_it_wrote(monkeypatch, capsys, exported, tmp_path):
    code, out, err = run(monkeypatch, capsys, "import", exported, tmp_path / "base")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'base'}: 119 tensors in 1 file(s), 3,211,392 bytes of weights\n"


@pytest.mark.parametrize("weights", [["--weights", "1", "3"], ["--weights", "1", "--weights", "3"]])
def test_weights_of_a_merge_are_numbers_one_after_the_other(monkeypatch, capsys, exported, tmp_path, weights):
    other = shutil.copytree(exported, tmp_path / "other")
    numbers = load_file(other / "model.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in numbers.items()}, other / "model.safetensors")
    code, _, err = run(monkeypatch, capsys, "merge", exported, other, tmp_path / "soup", *weights)
    assert (code, err) == (0, "")
    soup = load_file(tmp_path / "soup" / "model.safetensors")
    assert all(torch.equal(soup[name], tensor / 4) for name, tensor in numbers.items())


def test_a_run_that_goes_on_says_so(monkeypatch, capsys, trained, tmp_path):
    def interrupt(done, total):
        if done > 2_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(trained, tmp_path / "out", max_shard_size="500KB", listener=Listener(on_bytes=interrupt))
    arguments = ("export", trained, tmp_path / "out", "--max-shard-size", "500KB")
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert (code, err.startswith("going on after ")) == (0, True)


def test_an_error_of_ours_is_one_line(monkeypatch, capsys, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").unlink()
    code, out, err = run(monkeypatch, capsys, "export", tmp_path / "in", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.startswith("trillion-convert: ") and err.count("\n") == 1
    assert "holds no weights" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "only-one"],
        ["export", "a", "b", "--dtype", "int4"],
        ["verify", "a", "b", "--max-tokens", "0"],
        ["frobnicate"],
    ],
)
def test_wrong_usage_is_exit_code_2(monkeypatch, capsys, arguments):
    assert run(monkeypatch, capsys, *arguments)[0] == 2


def test_inspect_prints_and_writes_the_counts(monkeypatch, capsys, tmp_path):
    code, out, _ = run(monkeypatch, capsys, "inspect", "vaetki-7b-a1b", "--json", tmp_path / "sizes.json")
    assert code == 0
    assert "7,250,296,320" in out and "1,247,362,560" in out
    assert json.loads((tmp_path / "sizes.json").read_text())["total"] == 7_250_296_320


@pytest.mark.parametrize("command", [["verify", "a", "b"], ["inspect", "vaetki-nano"], ["validate", "a"]], ids=str)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(monkeypatch, capsys, tmp_path, command):
    code, out, err = run(monkeypatch, capsys, *command, "--json", tmp_path / "nowhere" / "figures.json")
    assert (code, out) == (1, "")
    assert err.startswith(f"trillion-convert: {tmp_path}/nowhere/figures.json cannot be written: there is no directory")


def test_validate_says_what_it_held_together(monkeypatch, capsys, exported):
    code, out, _ = run(monkeypatch, capsys, "validate", exported)
    assert (code, out) == (0, f"{exported}: 179 tensors fit the configuration (hf form)\n")


def test_the_console_script_runs():
    result = subprocess.run(
        [sys.executable, "-c", "from trillion_convert.cli import main; main()", "inspect", "no-such-model"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("trillion-convert: there is no preset 'no-such-model'; choose one of")
