"""Directories that appear whole or not at all: written under a temporary name beside the target, then renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trillion_convert.errors import TargetError

MARKER = "config.json"
"""``force`` replaces a directory only when it has this file, so that a slip of the keyboard costs no one's home."""


@contextmanager
def staged_directory(target: Path, *, source: Path, needed: int, force: bool) -> Iterator[Path]:
    """A directory to write into; it becomes ``target`` when the block ends, and vanishes when the block fails.

    Args:
        target: the directory to make.
        source: a directory that is being read, which ``target`` must not touch.
        needed: bytes that will be written.
        force: replace a ``target`` that is a model directory.

    Raises:
        TargetError: the target is in use or in the way, the disk is too small, or writing fails.
    """
    target, source = target.absolute(), source.resolve()
    _check(target, source, force)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise TargetError(
                f"{target} needs {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB free; make room or write "
                "elsewhere"
            )
        partial.mkdir()
        yield partial
        _move_into_place(partial, target)
    except OSError as error:
        raise TargetError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(target: Path, source: Path, force: bool) -> None:
    real = target.resolve()
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


def _move_into_place(partial: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        partial.rename(target)
        return
    old = partial.with_name(partial.name.removesuffix("partial") + "old")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)
