"""Checkpoints to convert: a tiny VAETKI as trillion-train leaves it."""

import pytest

from support.tiny_vaetki import tiny_model
from support.training_checkpoint import write_training_checkpoint
from trillion_convert.export import export
from trillion_training.tokenizer import to_huggingface, train_sentencepiece

TEXT = [
    "안녕하세요, 무엇을 도와 드릴까요? 삼백사십칠은 347입니다.",
    "three hundred forty-seven is 347, and 58 < 85.",
] * 4
VOCABULARY = 320


@pytest.fixture(scope="session")
def tokenizer():
    return to_huggingface(train_sentencepiece(TEXT, VOCABULARY))


@pytest.fixture(scope="session")
def model(tokenizer):
    return tiny_model(eos_token_id=tokenizer.eos_token_id)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, model, tokenizer):
    """A training checkpoint that no test changes."""
    return write_training_checkpoint(tmp_path_factory.mktemp("trained"), model, tokenizer)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, trained):
    """Its export, that no test changes."""
    target = tmp_path_factory.mktemp("exported") / "model"
    export(trained, target)
    return target
