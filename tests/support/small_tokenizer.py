"""A small tokenizer of our own kind, trained on the spot."""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from trillion_model.vaetki import chat_format

CORPUS = [
    "안녕하세요. 오늘 날씨가 좋습니다. 삼백사십칠은 숫자입니다.",
    "The quick brown fox jumps over the lazy dog. 1 2 3 4 5 6 7 8 9 0",
] * 20


def train_sentencepiece(directory: Path, control: Sequence[str] = chat_format.SPECIAL_TOKENS) -> Path:
    """A byte-fallback BPE tokenizer, saved as a Transformers directory."""
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    directory.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=420,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        allow_whitespace_only_pieces=True,
        control_symbols=list(control),
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    tokenizer = TokenizersBackend.from_pretrained(
        str(directory),
        bos_token=chat_format.BOS,
        eos_token=chat_format.EOS,
        pad_token=chat_format.PAD,
        additional_special_tokens=list(control),
    )
    tokenizer.chat_template = chat_format.chat_template()
    tokenizer.save_pretrained(directory)
    return directory
