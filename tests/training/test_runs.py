"""Whole runs, small: resuming, being killed while saving, what is learned, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trillion_training import checkpoint, stages
from trillion_training.config import Recipe
from trillion_training.errors import DataError, StateError, TokenizerError


def recipe(steps: int, **changes) -> Recipe:
    fields = {
        "budget": {"steps": steps},
        "batching": {"length": 128, "rows": 2},
        "checkpoints": {"every": 3},
        "log_every": 1,
    }
    return Recipe.model_validate(fields | changes)


def losses(run: Path) -> dict[int, float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {m["step"]: m["loss"] for m in map(json.loads, lines)}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.find(run) / "model.safetensors")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    optimizer: str, demo: Path, shape: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    full = recipe(8, optimizer={"name": optimizer}, batching={"length": 128, "rows": 2, "micro_batches": 2})
    data = demo / "pretrain.jsonl"
    stages.pretrain(full, str(shape), tokenizer_folder, data, tmp_path / "whole")

    resumed = tmp_path / "resumed"
    stages.pretrain(full, str(shape), tokenizer_folder, data, resumed)
    # Back to the checkpoint of step 6, as if the run had been killed in step 8.
    last = checkpoint.find(resumed)
    (resumed / "last").unlink()
    (resumed / "last").symlink_to(last.with_name("step-00000006").relative_to(resumed.resolve()))
    (resumed / "metrics.jsonl").unlink()
    stages.resume(resumed, data, "pretrain")

    assert list(losses(resumed)) == [7, 8]
    assert losses(resumed) == {step: loss for step, loss in losses(tmp_path / "whole").items() if step > 6}
    expected, found = weights(tmp_path / "whole"), weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_killed_while_it_saves_keeps_a_whole_checkpoint_and_goes_on(
    demo: Path, shape: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = tmp_path / "recipe.json"
    config.write_text(recipe(100_000, checkpoints={"every": 1}).model_dump_json())
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "trillion_training.cli", "pretrain", "--recipe", str(config)),
            *("--model", str(shape), "--tokenizer", str(tokenizer_folder)),
            *("--data", str(demo / "pretrain.jsonl"), "--out", str(run)),
        ],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        # Saving at every step, the run spends most of its time in the middle of one.
        caught = False
        deadline = time.monotonic() + 240
        while not caught and time.monotonic() < deadline:
            caught = (run / "last").exists() and any((run / "checkpoints").glob("*.partial/config.json"))
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert caught

    saved = checkpoint.load(checkpoint.find(run))
    checkpoint.load_model(checkpoint.find(run))
    assert saved.progress.step >= 1
    trainer_json = checkpoint.find(run) / "trainer.json"
    shorter = saved.progress.model_copy(update={"recipe": recipe(saved.progress.step + 2)})
    trainer_json.write_text(shorter.model_dump_json())
    stages.resume(run, demo / "pretrain.jsonl", "pretrain")
    assert checkpoint.load(checkpoint.find(run)).progress.step == saved.progress.step + 2
    assert not list((run / "checkpoints").glob("*.partial"))


def test_only_the_newest_checkpoints_are_kept(demo: Path, shape: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    stages.pretrain(recipe(7), str(shape), tokenizer_folder, demo / "pretrain.jsonl", tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000007"]
    files = {p.name for p in checkpoint.find(tmp_path).iterdir()}
    assert files == {"config.json", "model.safetensors", "optimizer.safetensors", "trainer.json", "tokenizer"}


def test_fine_tuning_goes_on_from_the_pretrained_weights_and_learns(
    demo: Path, shape: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    base = stages.pretrain(recipe(2), str(shape), tokenizer_folder, demo / "pretrain.jsonl", tmp_path / "base")
    still = recipe(1, optimizer={"lr": 1e-12, "muon_lr": 1e-12})
    stages.sft(still, base, demo / "sft.jsonl", tmp_path / "still")
    for name, tensor in weights(tmp_path / "base").items():
        torch.testing.assert_close(weights(tmp_path / "still")[name], tensor)

    stages.sft(recipe(30), tmp_path / "base", demo / "sft.jsonl", tmp_path / "tuned")
    curve = losses(tmp_path / "tuned")
    assert curve[30] < 0.6 * curve[1]


def test_a_budget_of_time_ends_the_run_and_the_schedule_follows_it(
    demo: Path, shape: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    timed = recipe(10_000, budget={"minutes": 0.05}, checkpoints={"every": 0})
    stages.pretrain(timed, str(shape), tokenizer_folder, demo / "pretrain.jsonl", tmp_path)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 3.0 <= metrics[-1]["seconds"] < 5.0
    assert metrics[0]["lr_factor"] == 0.0 and metrics[-1]["lr_factor"] < 0.3
    assert max(m["lr_factor"] for m in metrics) == 1.0


def test_what_does_not_fit_is_refused_with_what_to_do(
    demo: Path, shape: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    data = demo / "pretrain.jsonl"
    with pytest.raises(DataError, match=r"nothing\.jsonl: cannot be read: No such file"):
        stages.pretrain(recipe(1), str(shape), tokenizer_folder, tmp_path / "nothing.jsonl", tmp_path / "a")
    with pytest.raises(StateError, match=r"holds no tokenizer: expected tokenizer\.json"):
        stages.pretrain(recipe(1), str(shape), tmp_path, data, tmp_path / "a")
    with pytest.raises(StateError, match="'nonsense' is no preset"):
        stages.pretrain(recipe(1), "nonsense", tokenizer_folder, data, tmp_path / "a")
    with pytest.raises(StateError, match="is no checkpoint and no run with one"):
        stages.sft(recipe(1), tmp_path / "none", data, tmp_path / "a")

    small = json.loads((shape / "config.json").read_text()) | {"vocab_size": 500}
    (tmp_path / "config.json").write_text(json.dumps(small))
    with pytest.raises(TokenizerError, match="has 640 tokens, but the model's vocab_size is 500"):
        stages.pretrain(recipe(1), str(tmp_path), tokenizer_folder, data, tmp_path / "a")
    other = json.loads((shape / "config.json").read_text()) | {"eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(TokenizerError, match="eos_token_id is 7, but the tokenizer's is 2"):
        stages.pretrain(recipe(1), str(tmp_path), tokenizer_folder, data, tmp_path / "a")


def test_a_run_is_never_overwritten_nor_resumed_as_another_stage(
    demo: Path, shape: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    data = demo / "pretrain.jsonl"
    stages.pretrain(recipe(1), str(shape), tokenizer_folder, data, tmp_path)
    with pytest.raises(StateError, match="already holds a run: give another --out, or --resume"):
        stages.pretrain(recipe(1), str(shape), tokenizer_folder, data, tmp_path)
    with pytest.raises(StateError, match="is a run of pretrain, not of sft"):
        stages.resume(tmp_path, demo / "sft.jsonl", "sft")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "trainer.json"])
def test_a_damaged_checkpoint_is_refused_by_name(
    file: str, demo: Path, shape: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    data = demo / "pretrain.jsonl"
    last = stages.pretrain(recipe(1), str(shape), tokenizer_folder, data, tmp_path)
    content = (last / file).read_bytes()
    (last / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(StateError, match=f"checkpoint {last} cannot be read"):
        stages.resume(tmp_path, data, "pretrain")
