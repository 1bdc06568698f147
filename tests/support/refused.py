"""A table of corrupted checkpoints, and what must be seen of each."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.corruptions import EXPERT, HEAD, QUERY, SCALE, Corruption
from trillion_convert.cli import app
from trillion_convert.validation import survey
from trillion_model.errors import TrillionError

DAMAGED = r"model\.safetensors is truncated or not safetensors"
Q, E, H, S = map(re.escape, (QUERY, EXPERT, HEAD, SCALE))

COMMANDS = {
    "train": [["export", "{source}", "{target}"]],
    "hf": [
        ["import", "{source}", "{target}"],
        ["merge", "{source}", "{source}", "{target}"],
        ["quantize", "{source}", "{target}", "--scheme", "fp8-dynamic"],
    ],
}
COMMANDS["shards"] = COMMANDS["hf"]


@dataclass(frozen=True)
class Row:
    """A corrupted checkpoint.

    Attributes:
        form: the good one: ``train``, ``hf`` (one file), ``shards``, ``fp8`` (quantised) or ``whole`` (``hf`` with its
            manifest).
        corrupt: what is done to it.
        names: what the message must say, a pattern.
        commands: whether commands that convert must refuse it too, or only ``validate`` reads what is wrong.
    """

    form: str
    corrupt: Corruption
    names: str
    commands: bool = True

    def commands_in(self, turn: int) -> list[list[str]]:
        """The commands that must refuse it: one in turn, or all where only writing the target shows what is wrong."""
        if not self.commands:
            return []
        commands = COMMANDS[self.form]
        return commands if "holds" in self.names else [commands[turn % len(commands)]]


def rows(table: dict[str, Row]) -> Iterable:
    """A table as ``parametrize`` takes it: each row, and whose turn it is."""
    return [pytest.param(row, turn, id=name) for turn, (name, row) in enumerate(table.items())]


def assert_refused(row: Row, turn: int, good: Path, folder: Path) -> None:
    """See a row refused: by ``validate``, and by a command that reads such a directory and leaves nothing behind.

    Args:
        good: has the good checkpoints, by form.
        folder: an empty one.
    """
    source = shutil.copytree(good / row.form, folder / "work" / "in")
    row.corrupt(source)
    problems = survey(source).problems
    assert any(re.search(row.names, problem) for problem in problems), problems
    assert all("\n" not in problem for problem in problems)
    for command in row.commands_in(turn):
        arguments = [part.format(source=source, target=source.parent / "out") for part in command]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, TrillionError), (command[0], result.exception, result.output)
        assert re.search(row.names, str(result.exception)), (command[0], result.exception)
        assert [path.name for path in source.parent.iterdir()] == ["in"], f"{command[0]} left something behind"
