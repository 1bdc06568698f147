"""Tokenizers for the serving tests, built on the spot."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from support.small_tokenizer import CORPUS, train_sentencepiece
from trillion_model.vaetki import chat_format
from trillion_serve.chat.tokenizer import ChatTokenizer


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> ChatTokenizer:
    """Our tokenizer, loaded."""
    return ChatTokenizer.load(str(tokenizer_dir))


@pytest.fixture(scope="session")
def reference(tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer as Transformers alone uses it."""
    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="session")
def text_tags_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """A tokenizer to which ``<think>`` and ``</think>`` are plain text in several tokens."""
    tags = (chat_format.THINK_START, chat_format.THINK_END)
    control = [token for token in chat_format.SPECIAL_TOKENS if token not in tags]
    return ChatTokenizer.load(str(train_sentencepiece(tmp_path_factory.mktemp("text_tags"), control)))


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> ChatTokenizer:
    """A byte-level BPE, as Llama 3 and Qwen have; its think tags are added tokens that are not special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    backend.add_special_tokens([chat_format.BOS, chat_format.EOS, chat_format.ROLE_START, chat_format.ROLE_END])
    backend.add_tokens([AddedToken(tag, special=False) for tag in (chat_format.THINK_START, chat_format.THINK_END)])
    return ChatTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=chat_format.BOS, eos_token=chat_format.EOS)
    )


@pytest.fixture(scope="session")
def doubling_tokenizer() -> ChatTokenizer:
    """A tokenizer that leaves a space after newlines and tabs, which are tokens of their own in it."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *byte_tokens])
    backend.train_from_iterator(CORPUS, trainer)
    backend = _without_added(backend)
    backend.add_tokens([AddedToken(space, normalized=False, special=False) for space in ("\n", "\t")])
    backend.add_special_tokens(list(chat_format.SPECIAL_TOKENS))
    return ChatTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=chat_format.BOS, eos_token=chat_format.EOS)
    )


def _without_added(backend: Tokenizer) -> Tokenizer:
    """The trainer makes every byte token an added one; in a real tokenizer they are only vocabulary."""
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(spec))
