"""What is logged while a test runs."""

import json
import logging
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest

from support.observed import wait_for
from trillion_serve.gateway.observability import LogFormat, configure_logging


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """What is logged to stderr. Afterwards logging is as it was before."""
    written = StringIO()
    monkeypatch.setattr("sys.stderr", written)
    whole, ours = logging.getLogger(), logging.getLogger("trillion_serve")
    before = whole.handlers[:], whole.level, ours.level
    yield written
    whole.handlers[:] = before[0]
    whole.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
def json_lines(stderr: StringIO) -> Callable[[str], list[dict[str, Any]]]:
    """The JSON lines of a logger, of which there will be one or more."""
    configure_logging(LogFormat.JSON, "info")

    def read(logger: str) -> list[dict[str, Any]]:
        # A client has its answer before the server is done with the request.
        wait_for(lambda: logger in stderr.getvalue())
        lines = [json.loads(line) for line in stderr.getvalue().splitlines()]
        return [line for line in lines if line["logger"] == logger]

    return read


@pytest.fixture
def text_log(stderr: StringIO) -> StringIO:
    """What is logged as text, when debugging."""
    configure_logging(LogFormat.TEXT, "debug")
    return stderr
