"""What an engine's trouble looks like to a client."""

import pytest

from trillion_serve.errors import EngineDeadError, EngineUnavailableError, OverloadedError
from trillion_serve.gateway.errors import _on_error, api_error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OverloadedError("the queue is full", retry_after=1.2), 429, "overloaded"),
        (EngineUnavailableError("no replica answers"), 503, "engine_unavailable"),
        (EngineDeadError("the engine has stopped"), 503, "engine_dead"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_errors_have_a_status_and_a_code(error: Exception, status: int, code: str) -> None:
    told = api_error(error)
    assert (told.status, told.code) == (status, code)
    assert "secret" not in told.body()["error"]["message"]


async def test_an_overloaded_engine_says_when_to_come_back() -> None:
    answer = await _on_error(None, OverloadedError("the queue is full", retry_after=1.2))  # type: ignore[arg-type]
    assert answer.headers["Retry-After"] == "2"
