"""A gateway for each test."""

from collections.abc import Iterator

import pytest

from support.running_gateway import Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer


@pytest.fixture
def gateway(tokenizer: ChatTokenizer, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """A fresh gateway; an indirect parameter holds options of the fake engine."""
    with run_gateway(tokenizer, **getattr(request, "param", {})) as running:
        yield running
