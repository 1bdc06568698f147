"""Progress is for people: on a terminal a bar of bytes or a spinner on standard error, elsewhere nothing."""

import os
import pty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TextIO

import pytest

from trillion_convert.progress import byte_bar, spinner


def everything(stderr: TextIO, other_end: int) -> str:
    """What was written to a terminal so far."""
    stderr.flush()
    chunks = []
    with suppress(BlockingIOError):
        while chunk := os.read(other_end, 2**16):
            chunks.append(chunk)
    return b"".join(chunks).decode()


@pytest.fixture
def terminal():
    """Makes standard error a terminal for the length of a block; gives what was written to it."""

    @contextmanager
    def opened() -> Iterator[Callable[[], str]]:
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        with os.fdopen(theirs, "w") as stderr, pytest.MonkeyPatch.context() as patch:
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", "120")
            patch.setattr("sys.stderr", stderr)
            yield partial(everything, stderr, ours)
        os.close(ours)

    return opened


def test_a_terminal_sees_a_bar_of_bytes(terminal):
    with terminal() as shown:
        with byte_bar("exporting model") as on_bytes:
            on_bytes(1_000_000, 4_000_000)
            on_bytes(4_000_000, 4_000_000)
        text = shown()
    assert "exporting model" in text
    assert "4.0/4.0 MB" in text


def test_a_terminal_sees_what_is_read(terminal):
    with terminal() as shown:
        with spinner("reading checkpoints") as on_step:
            on_step("lm_head.weight")
        text = shown()
    assert "lm_head.weight" in text


def test_nothing_is_written_elsewhere(capsys):
    with byte_bar("exporting model") as on_bytes, spinner("reading checkpoints") as on_step:
        on_bytes(1, 2)
        on_step("lm_head.weight")
    assert capsys.readouterr() == ("", "")
