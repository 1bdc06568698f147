"""What tests of several packages share, because making it takes long."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.small_tokenizer import train_sentencepiece

if TYPE_CHECKING:
    from support.tiny_engine import TinyEngine


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our tokenizer: chat and think tokens are control symbols."""
    return train_sentencepiece(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def _vllm_server(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[TinyEngine]":
    from support.tiny_engine import TinyEngine  # which imports torch

    engine = TinyEngine(tokenizer_dir, tmp_path_factory.mktemp("engine"))
    yield engine
    engine.kill()


@pytest.fixture
def vllm_server(_vllm_server: "TinyEngine") -> "TinyEngine":
    """A running ``vllm serve``, one for all tests; it is started anew if a test has killed it."""
    return _vllm_server.running()
