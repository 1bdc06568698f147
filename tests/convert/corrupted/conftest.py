"""Good checkpoints to corrupt, of every form.

The files here are a table each of what may be wrong with one part of a checkpoint. Every row is refused twice:
``validate`` lists the problem; and a command that reads such a directory (``export`` a training checkpoint; ``import``,
``merge`` and ``quantize`` a published one, in turn) stops with it and leaves nothing behind. What shows only while the
target is being written, a number that is none, goes through each of them.

    python -m pytest tests/convert/corrupted -v     prints the tables
"""

import shutil

import pytest
from typer.testing import CliRunner

from trillion_convert.cli import app
from trillion_convert.manifest import MANIFEST


@pytest.fixture(scope="session")
def good(trained, exported, tmp_path_factory):
    """The good checkpoints, without manifests: else every row would be a broken checksum before anything else."""
    home = tmp_path_factory.mktemp("good")
    shutil.copytree(trained, home / "train")
    shutil.copytree(exported, home / "hf")
    result = CliRunner().invoke(app, ["export", str(trained), str(home / "shards"), "--max-shard-size", "1MB"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["quantize", str(exported), str(home / "fp8"), "--scheme", "fp8-dynamic"])
    assert result.exit_code == 0, result.output
    for manifest in home.rglob(MANIFEST):
        manifest.unlink()
    shutil.copytree(exported, home / "whole")
    return home
