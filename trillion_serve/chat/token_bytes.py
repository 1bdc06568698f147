"""The bytes that single tokens stand for, also those that are only a part of a character."""

import re
from functools import lru_cache

from trillion_serve.chat.tokenizer import ChatTokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
"""How a vocabulary with byte fallback names a byte."""


def _byte_alphabet() -> dict[str, int]:
    """The characters by which a byte-level vocabulary (GPT-2's, so Llama 3's and Qwen's) names the bytes.

    Bytes that Latin-1 shows stand for themselves; the others come in order from U+0100 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (byte for byte in range(0x100) if byte not in shown)
    return {chr(byte): byte for byte in shown} | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


@lru_cache(maxsize=2**16)
def token_bytes(tokenizer: ChatTokenizer, token_id: int) -> bytes:
    """What a token adds to a text in UTF-8: the bytes of a text's tokens, joined, are the text's."""
    text = tokenizer.token_text(token_id)
    if _REPLACEMENT not in text:
        return text.encode()
    name = tokenizer.backend.id_to_token(token_id) or ""
    if fallback := _FALLBACK.fullmatch(name):
        return bytes.fromhex(fallback[1])
    if name and all(character in _ALPHABET for character in name):
        return bytes(_ALPHABET[character] for character in name)
    return text.encode()
