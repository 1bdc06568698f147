"""Where state lives."""

from pathlib import Path

import pytest

from trillion_serve.home import home


def test_the_environment_names_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRILLION_SERVE_HOME", str(tmp_path / "state"))
    assert home() == tmp_path / "state"


@pytest.mark.parametrize("value", ["", None])
def test_otherwise_it_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRILLION_SERVE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("TRILLION_SERVE_HOME", value)
    assert home() == tmp_path / ".cache" / "trillion_serve"
