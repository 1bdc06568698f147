"""The demo's stages, each a command that a user could type, run once and reused until it changes."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trillion_serve.errors import DemoError

_MODULES = {
    "trillion-train": "trillion_training.cli",
    "trillion-convert": "trillion_convert.cli",
    "trillion-serve": "trillion_serve.cli.main",
}


@dataclass(frozen=True)
class Stage:
    """One command of the demo.

    Attributes:
        name: what it is called in the output.
        command: the command line as a user would type it.
        makes: the file or directory that it writes.
    """

    name: str
    command: tuple[str, ...]
    makes: Path


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: its seconds, and whether an earlier run's outcome was reused."""

    name: str
    seconds: float
    reused: bool


def argv(command: Sequence[str]) -> list[str]:
    """The command line of one of our console scripts, run by this very interpreter."""
    return [sys.executable, "-m", _MODULES[command[0]], *command[1:]]


def demo_stages(home: Path, minutes: float | None) -> list[Stage]:
    """The stages that lead to a verified model, in order.

    Args:
        home: the demo's directory.
        minutes: training time, split as the recipes split theirs; None for the recipes' own.
    """
    data, tokenizer, hf = home / "data", home / "tokenizer", home / "hf"
    pretrained, tuned = home / "pretrained", home / "tuned"

    def share(of: float) -> list[str]:
        return [] if minutes is None else ["--minutes", str(round(minutes * of, 3))]

    rows: list[tuple[str, list[str], Path]] = [
        ("data", ["trillion-train", "data", "demo", "--out", str(data)], data),
        (
            "tokenizer",
            [
                *("trillion-train", "tokenizer", "--data", str(data / "tokenizer.jsonl")),
                *("--vocab-size", "768", "--out", str(tokenizer)),
            ],
            tokenizer,
        ),
        (
            "pretrain",
            [
                *("trillion-train", "pretrain", "--recipe", "demo_pretrain", "--model", "vaetki-nano"),
                *("--tokenizer", str(tokenizer), "--data", str(data / "pretrain.jsonl"), "--out", str(pretrained)),
                *share(PRETRAIN_SHARE),
            ],
            pretrained,
        ),
        (
            "sft",
            [
                *("trillion-train", "sft", "--recipe", "demo_sft", "--base", str(pretrained)),
                *("--data", str(data / "sft.jsonl"), "--out", str(tuned)),
                *share(1 - PRETRAIN_SHARE),
            ],
            tuned,
        ),
        ("export", ["trillion-convert", "export", str(tuned), str(hf), "--force"], hf),
        (
            "verify",
            [
                *("trillion-convert", "verify", f"hf:{hf}", f"vllm:{hf}"),
                *("--dtype", "float32", "--json", str(home / "verify.json")),
            ],
            home / "verify.json",
        ),
    ]
    return [Stage(name, tuple(command), makes) for name, command, makes in rows]


PRETRAIN_SHARE = 0.16
"""Part of ``--minutes`` that goes to pre-training: what the demo's recipes give it."""

TRAINING = ("pretrain", "sft")


def run_stages(stages: Sequence[Stage], home: Path, version: str, say: Callable[[str], None]) -> list[StageResult]:
    """Run the stages that have not run yet, or whose command or predecessors changed since.

    Args:
        stages: in order.
        home: where the record of each finished stage is kept.
        version: of the program; another version runs every stage anew.
        say: told a line before each stage.

    Raises:
        DemoError: a command failed; names it and says how to run it alone.
    """
    home.mkdir(parents=True, exist_ok=True)
    results = []
    key = version
    for number, stage in enumerate(stages, 1):
        key = hashlib.sha256(json.dumps([key, stage.command]).encode()).hexdigest()
        record = home / f"{stage.name}.done.json"
        finished = _read_record(record, key) if stage.makes.exists() else None
        say(f"[{number}/{len(stages)}] {stage.name}: {shlex.join(stage.command)}")
        if finished is not None:
            say(f"      done before, in {finished:.0f} s")
            results.append(StageResult(stage.name, finished, reused=True))
            continue
        record.unlink(missing_ok=True)
        _remove(stage.makes)
        began = time.monotonic()
        code = subprocess.run(argv(stage.command), check=False).returncode
        if code != 0:
            raise DemoError(
                f"stage {stage.name} failed with exit code {code}; alone it is: {shlex.join(stage.command)}"
            )
        if not stage.makes.exists():
            raise DemoError(f"stage {stage.name} left no {stage.makes}; alone it is: {shlex.join(stage.command)}")
        seconds = time.monotonic() - began
        record.write_text(json.dumps({"key": key, "seconds": seconds}), encoding="utf-8")
        results.append(StageResult(stage.name, seconds, reused=False))
    return results


def _read_record(record: Path, key: str) -> float | None:
    """Seconds that the stage took, when it finished with this very key."""
    try:
        fields = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return float(fields["seconds"]) if fields.get("key") == key else None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
