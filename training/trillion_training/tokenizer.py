"""A byte-fallback BPE tokenizer: trained by SentencePiece, used as a Hugging Face fast tokenizer with the same ids.

Nothing about the text is changed on the way in: no normalisation, no prefix space, no folding of spaces. Digits are
tokens of their own. Chat and think tokens are control symbols, which SentencePiece never finds in text; the Hugging
Face form does find them, so encode untrusted text with ``split_special_tokens=True``.
"""

import io
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trillion_model.vaetki import chat_format
from trillion_training.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "<unk>"
SENTENCEPIECE_FILE = "tokenizer.model"


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a SentencePiece model and return its serialised form.

    Ids 0 to 10 are :data:`chat_format.SPECIAL_TOKENS` in their order, then ``<unk>``, then 256 bytes.

    Args:
        texts: documents; each of their lines is a sentence, so nothing merges across a newline.
        vocab_size: pieces in all.

    Raises:
        TokenizerError: the text is too little for so many pieces, or they are too few for its characters.
    """
    import sentencepiece

    special = list(chat_format.SPECIAL_TOKENS)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.split("\n") if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            pad_id=special.index(chat_format.PAD),
            bos_id=special.index(chat_format.BOS),
            eos_id=special.index(chat_format.EOS),
            unk_id=len(special),
            pad_piece=chat_format.PAD,
            bos_piece=chat_format.BOS,
            eos_piece=chat_format.EOS,
            unk_piece=UNKNOWN,
            control_symbols=special[3:],
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"SentencePiece cannot make {vocab_size} pieces from this text: {error}. Give more text, or another "
            "--vocab-size: at least 268 plus its different characters, at most what its words can be merged into"
        ) from error
    return model.getvalue()


def to_huggingface(sentencepiece_model: bytes) -> "PreTrainedTokenizerBase":
    """Convert to a Hugging Face fast tokenizer with the same ids and our chat template.

    The template writes the first token itself; encoding plain text adds none.
    """
    from transformers import TokenizersBackend

    with TemporaryDirectory() as folder:
        Path(folder, SENTENCEPIECE_FILE).write_bytes(sentencepiece_model)
        tokenizer = TokenizersBackend.from_pretrained(
            folder,
            bos_token=chat_format.BOS,
            eos_token=chat_format.EOS,
            pad_token=chat_format.PAD,
            unk_token=UNKNOWN,
            additional_special_tokens=list(chat_format.SPECIAL_TOKENS[3:]),
            add_bos_token=False,
            add_eos_token=False,
            clean_up_tokenization_spaces=False,
        )
    tokenizer.chat_template = chat_format.chat_template()
    return tokenizer
