"""A small tokenizer, and small data and models to train with."""

from pathlib import Path

import pytest

from support.tiny_vaetki import tiny_config
from trillion_training.data.demo.write import DemoSizes, write_demo
from trillion_training.data.jsonl import TextDocument, read_jsonl
from trillion_training.tokenizer import to_huggingface, train_sentencepiece


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's files, small."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, 0, DemoSizes(pretrain=300, sft=300, held_out=36))
    return folder


@pytest.fixture(scope="session")
def sentencepiece_model(demo: Path) -> bytes:
    """A SentencePiece model of 640 pieces trained on the demo's text."""
    return train_sentencepiece((d.text for d in read_jsonl(demo / "tokenizer.jsonl", TextDocument)), 640)


@pytest.fixture(scope="session")
def tokenizer(sentencepiece_model: bytes):
    """Its Hugging Face form."""
    return to_huggingface(sentencepiece_model)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its Hugging Face form, on disk."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the configuration of a very small model that fits the tokenizer."""
    folder = tmp_path_factory.mktemp("shape")
    tiny_config(vocab_size=640, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]).to_json_file(
        folder / "config.json"
    )
    return folder
