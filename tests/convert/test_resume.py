"""A conversion that is killed goes on where it was, to the same bytes; one that differs starts anew."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trillion_convert.errors import TargetError
from trillion_convert.export import export
from trillion_convert.manifest import check_manifest
from trillion_convert.streaming import Listener

SHARDS = "500KB"
KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch, transformers
from trillion_convert.export import export
from trillion_convert.streaming import Listener

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def run(source, target, moment, count, force):
    torch.set_num_threads(1)
    seen = 0
    def watch(event, arguments):
        nonlocal seen
        if event == moment and (event != "open" or str(arguments[0]).endswith("manifest.json")):
            seen += 1
            if seen == count:
                die()
    sys.addaudithook(watch)
    on_bytes = (lambda done, total: done >= count and die()) if moment == "bytes" else (lambda done, total: None)
    export(Path(source), Path(target), max_shard_size=sys.argv[4], force=force, listener=Listener(on_bytes=on_bytes))

export(Path(sys.argv[2]), Path(sys.argv[3]))  # so that no child has to import anything
statuses = []
for arguments in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        try:
            run(*arguments)
        finally:
            os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
print(json.dumps(statuses))
"""

MOMENTS = {
    "before anything is written": ("bytes", 0, False),
    "in the second file": ("bytes", 700_000, False),
    "in the middle": ("bytes", 1_600_000, False),
    "at the last number": ("bytes", 3_211_392, False),
    "before the manifest": ("open", 1, False),
    "before it is renamed": ("os.rename", 2, False),
    "before the old one is moved away": ("os.rename", 2, True),
    "between the two renames": ("os.rename", 3, True),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """What an uninterrupted run writes; the directory is called the same, since the model card says its name."""
    target = tmp_path_factory.mktemp("whole") / "model"
    report = export(trained, target, max_shard_size=SHARDS)
    assert (report.files, report.nbytes) == (7, 3_211_392)
    return target


@pytest.fixture(scope="module")
def killed(trained, tmp_path_factory):
    """A directory for each moment, in which an export was killed at that moment."""
    root = tmp_path_factory.mktemp("killed")
    runs = []
    for name, (moment, count, force) in MOMENTS.items():
        target = root / name / "model"
        if force:
            export(trained, target)
        runs.append([str(trained), str(target), moment, count, force])
    command = [sys.executable, "-c", KILLED, json.dumps(runs), str(trained), str(root / "first"), SHARDS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert json.loads(result.stdout) == [signal.SIGKILL] * len(MOMENTS), result.stderr
    return root


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_bytes(trained, whole, killed, moment):
    target, force = killed / moment / "model", MOMENTS[moment][2]
    half_swapped = moment == "between the two renames"
    assert target.exists() is (force and not half_swapped)
    assert (target.parent / ".model.partial").is_dir()
    notes, done = [], []
    listener = Listener(on_bytes=lambda written, total: done.append(written), on_note=notes.append)
    export(trained, target, max_shard_size=SHARDS, force=force, listener=listener)
    assert contents(target) == contents(whole)
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    finished = int(notes[0].split()[3])
    assert notes == [f"going on after {finished} file(s) that an earlier run finished"]
    if MOMENTS[moment][0] != "bytes":
        assert (finished, done) == (7, [3_211_392])
    assert check_manifest(target) == len(contents(target)) - 1


@pytest.fixture
def interrupted(trained, tmp_path):
    """A directory in which an export was interrupted from the keyboard after some files."""

    def interrupt(written, total):
        if written > 2_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(trained, tmp_path / "model", max_shard_size=SHARDS, listener=Listener(on_bytes=interrupt))
    assert [path.name for path in tmp_path.iterdir()] == [".model.partial"]
    return tmp_path


def notes_of(source, target, **options) -> list[str]:
    notes: list[str] = []
    export(source, target, listener=Listener(on_note=notes.append), **options)
    return notes


def test_an_interrupted_run_goes_on(trained, whole, interrupted):
    (note,) = notes_of(trained, interrupted / "model", max_shard_size=SHARDS)
    assert note.startswith("going on after ")
    assert contents(interrupted / "model") == contents(whole)


def test_room_is_asked_for_what_is_left_only(trained, whole, interrupted, monkeypatch):
    _, *lines = (interrupted / ".model.partial" / "journal.jsonl").read_text().splitlines()
    finished = sum(json.loads(line)["size"] for line in lines)
    left = 3_211_392 - finished + 64 * 2**20  # and for small files
    room = shutil.disk_usage(interrupted)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room._replace(free=left - 200_000))
    with pytest.raises(TargetError, match="make room or write elsewhere"):
        export(trained, interrupted / "model", max_shard_size=SHARDS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room._replace(free=left))
    (note,) = notes_of(trained, interrupted / "model", max_shard_size=SHARDS)
    assert note.startswith("going on after ")
    assert contents(interrupted / "model") == contents(whole)


def test_other_options_start_anew(trained, interrupted):
    notes = notes_of(trained, interrupted / "model", max_shard_size=SHARDS, dtype="bfloat16")
    assert notes == ["an earlier run had other inputs or options: starting anew"]
    assert check_manifest(interrupted / "model")


def test_a_source_that_changed_starts_anew(trained, whole, interrupted, tmp_path_factory):
    other = shutil.copytree(trained, tmp_path_factory.mktemp("other") / "checkpoint")
    os.utime(other / "model.safetensors")
    notes = notes_of(other, interrupted / "model", max_shard_size=SHARDS)
    assert notes == ["an earlier run had other inputs or options: starting anew"]
    assert (
        contents(interrupted / "model")["model-00001-of-00007.safetensors"]
        == (contents(whole)["model-00001-of-00007.safetensors"])
    )


def test_a_finished_file_that_was_damaged_is_written_again(trained, whole, interrupted):
    files = interrupted / ".model.partial" / "files"
    journal = (files.parent / "journal.jsonl").read_text().splitlines()
    damaged = files / json.loads(journal[1])["file"]
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    assert notes_of(trained, interrupted / "model", max_shard_size=SHARDS) == [
        f"going on after {len(journal) - 2} file(s) that an earlier run finished"
    ]
    assert contents(interrupted / "model") == contents(whole)


@pytest.mark.parametrize("journal", ["", "{", "[]\n", '{"plan": 7}\n', '\xff\n{"file": 1}\n'])
def test_a_journal_that_cannot_be_read_starts_anew(trained, whole, interrupted, journal):
    (interrupted / ".model.partial" / "journal.jsonl").write_text(journal)
    notes = notes_of(trained, interrupted / "model", max_shard_size=SHARDS)
    assert notes == ["an earlier run had other inputs or options: starting anew"]
    assert contents(interrupted / "model") == contents(whole)


def test_a_line_that_was_cut_off_costs_its_file_only(trained, whole, interrupted):
    path = interrupted / ".model.partial" / "journal.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(path.read_text().removesuffix("\n")[:-9])
    assert notes_of(trained, interrupted / "model", max_shard_size=SHARDS) == [
        f"going on after {len(lines) - 2} file(s) that an earlier run finished"
    ]
    assert contents(interrupted / "model") == contents(whole)


def test_two_processes_do_not_write_one_directory(trained, tmp_path):
    def second(written, total):
        export(trained, tmp_path / "model")

    with pytest.raises(TargetError, match=r"another process is writing .*; wait for it, or choose another directory"):
        export(trained, tmp_path / "model", listener=Listener(on_bytes=second))
    assert list(tmp_path.iterdir()) == []
