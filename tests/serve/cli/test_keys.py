"""``trillion-serve keys``, and serving with what it makes."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from trillion_serve.cli.main import app
from trillion_serve.errors import ServeError
from trillion_serve.gateway.security.keys import ApiKey, Keyring, digest_of
from trillion_serve.gateway.security.keys_file import read_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the keys go."""
    return tmp_path / "state" / "keys.yaml"


def keys(*arguments: str) -> tuple[str, str]:
    """What a subcommand prints, and what it says beside it."""
    done = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def new(file: Path, name: str, *options: str) -> str:
    return keys("new", "--name", name, "--file", str(file), *options)[0].strip()


def test_a_key_is_shown_once_and_its_hash_is_kept(file: Path) -> None:
    limits = ["--requests-per-minute", "60", "--tokens-per-minute", "9000", "--concurrency", "4"]
    secret = new(file, "team-a", "--models", "vaetki", "--models", "다른/것", *limits)
    assert secret.startswith("tsk-")
    assert len(secret) == 4 + 43, "256 random bits"
    assert secret not in file.read_text()
    assert read_keys(file) == (
        ApiKey("team-a", digest_of(secret), False, frozenset({"vaetki", "다른/것"}), 60, 9000, 4),
    )
    assert yaml.safe_load(file.read_text())["keys"][0]["sha256"] == digest_of(secret)


def test_only_the_owner_can_read_the_file(file: Path) -> None:
    new(file, "team-a")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["keys.yaml"]


def test_keys_are_appended_listed_and_revoked(file: Path) -> None:
    first, second = new(file, "team-a", "--requests-per-minute", "5"), new(file, "ops", "--admin")
    assert first != second
    ring = Keyring(read_keys(file))
    assert [ring.find(secret) for secret in (first, second)] == list(ring)
    assert keys("list", "--file", str(file))[0] == "team-a  requests per minute: 5\nops  admin: True\n"
    keys("revoke", "team-a", "--file", str(file))
    assert [key.name for key in read_keys(file)] == ["ops"]


def test_the_file_is_in_the_state_directory_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILLION_SERVE_HOME", str(tmp_path))
    keys("new", "--name", "team-a")
    assert [key.name for key in read_keys(tmp_path / "keys.yaml")] == ["team-a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "--name", "team-a"], "has a key called 'team-a' already"),
        (["new", "--name", "two words"], "name is 'two words'"),
        (["revoke", "team-b"], "has no key called 'team-b', only 'team-a'"),
    ],
)
def test_what_cannot_be_done_is_told(file: Path, arguments: list[str], message: str) -> None:
    new(file, "team-a")
    before = file.read_text()
    with pytest.raises(ServeError, match=message):
        keys(*arguments, "--file", str(file))
    assert file.read_text() == before


def test_a_file_of_something_else_is_left_alone(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("keys: [{name: a}]")
    with pytest.raises(ServeError, match=r"keys\[0\].sha256: "):
        new(file, "team-a")
    assert file.read_text() == "keys: [{name: a}]"


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trillion_serve.cli.main", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0", "--engine", "fake"], "and no API key is set"),
        (["--engine", "http"], "--engine http and --url"),
        (["--url", "vllm=http://127.0.0.1:9"], "--engine http and --url"),
        (["--engine", "http", "--url", "http://127.0.0.1:9"], "--url takes vllm=URL or sglang=URL"),
        (["--engine", "http", "--url", "vllm=127.0.0.1"], "must be a base URL"),
        (["--engine", "fake", "--keys-file", "none.yaml"], "none.yaml cannot be read"),
        (["--config", "gateway.yaml"], "name either a MODEL or a --config file"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(
    tokenizer_dir: Path, arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tokenizer_dir / "config.json").write_text('{"model_type": "llama"}')
    done = serve(str(tokenizer_dir), "--port", "0", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_options_beside_a_configuration_file_are_not_overlooked(tmp_path: Path) -> None:
    done = serve("--config", str(tmp_path / "gateway.yaml"), "--port", "9000", "--insecure")
    assert done.returncode == 1
    assert "--config says everything: put insecure, port into" in done.stderr
