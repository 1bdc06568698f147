"""Directories that appear whole or not at all: written under a temporary name beside the target, then renamed.

    models/.vaetki.partial/lock           held by the process that writes
                           journal.jsonl  which files are finished
                           files/         what becomes models/vaetki

A run that fails takes the temporary directory with it. One that is killed or interrupted, or whose disk fails or is
full, leaves it, and the same command run again goes on from there.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trillion_convert.errors import TargetError
from trillion_convert.journal import Journal

MARKER = "config.json"
"""``force`` replaces a directory only when it has this file, so that a slip of the keyboard costs no one's home."""

_REPLACED = "replaced"


@dataclass(frozen=True)
class Stage:
    """A directory to write into, and what an earlier run of the same plan left in it.

    Attributes:
        folder: what becomes the target.
        journal: the files in it that are finished.
        note: what was found, for people; empty where there was nothing.
    """

    folder: Path
    journal: Journal
    note: str


@contextmanager
def staged_directory(target: Path, *, sources: Sequence[Path], needed: int, force: bool, plan: str) -> Iterator[Stage]:
    """A stage to write on; its folder becomes ``target`` when the block ends, and vanishes when the block fails.

    Args:
        target: the directory to make.
        sources: directories that are being read, which ``target`` must not touch.
        needed: bytes that will be written.
        force: replace a ``target`` that is a model directory.
        plan: digest of all that decides the files' contents; what another plan left is deleted.

    Raises:
        TargetError: the target is in use or in the way, the disk is too small, or writing fails.
    """
    target, sources = target.absolute(), [source.resolve() for source in sources]
    _check(target, sources, force)
    partial = target.with_name(f".{target.name}.partial")
    folder, journal = partial / "files", Journal(partial / "journal.jsonl", partial / "files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(partial, target):
            _undo_half_a_swap(folder, target)
            _check(target, sources, force)
            note = _take_over(folder, journal, plan)
            try:
                _check_room(target, needed - sum(entry.size for entry in journal.finished.values()))
                yield Stage(folder, journal, note)
                _move_into_place(folder, target)
            except (OSError, TargetError):  # of the disk: what is finished is still good
                raise
            except Exception:
                journal.finished.clear()
                raise
            finally:
                if target_is_made := not folder.exists():
                    journal.finished.clear()
                if target_is_made or not journal.finished:
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        kept = f"; {partial} holds what is finished, and the same command goes on from it" if partial.exists() else ""
        raise TargetError(f"cannot write {target}: {error}{kept}") from error


@contextmanager
def _locked(partial: Path, target: Path) -> Iterator[None]:
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetError(
                f"another process is writing {target}; wait for it, or choose another directory"
            ) from None
        yield


def _take_over(folder: Path, journal: Journal, plan: str) -> str:
    left = any(folder.iterdir()) or journal.path.is_file()
    if left and journal.resume(plan):
        for path in folder.iterdir():
            if path.name not in journal.finished:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return f"going on after {len(journal.finished)} file(s) that an earlier run finished"
    shutil.rmtree(folder)
    folder.mkdir()
    journal.begin(plan)
    return "an earlier run had other inputs or options: starting anew" if left else ""


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise TargetError(
            f"{target} needs {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB free; make room or write "
            "elsewhere"
        )


def _check(target: Path, sources: Sequence[Path], force: bool) -> None:
    real = target.resolve()
    for source in sources:
        if real == source or real in source.parents or source in real.parents:
            raise TargetError(f"{target} overlaps {source}, which is being read; choose another directory")
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise TargetError(f"{target} exists and is not a directory; choose another name")
    if not any(target.iterdir()):
        return
    if not force:
        raise TargetError(f"{target} is not empty; choose another directory, or replace it with --force")
    if not (target / MARKER).is_file():
        raise TargetError(f"{target} has no {MARKER}, so it is no model directory, and --force does not delete it")


def _move_into_place(folder: Path, target: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _flush(path)
    if not target.exists() or not any(target.iterdir()):
        folder.rename(target)
    else:
        old = folder.with_name(_REPLACED)
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        try:
            folder.rename(target)
        except OSError:
            old.rename(target)
            raise
    _flush(target.parent)


def _undo_half_a_swap(folder: Path, target: Path) -> None:
    """Put back what a run replaced that was killed between its two renames."""
    old = folder.with_name(_REPLACED)
    if old.exists() and not target.exists():
        old.rename(target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
