"""Token ids to text as they come."""

from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
"""Most tokens that can share one character: UTF-8 has at most four bytes in one."""
_LONGEST_CHAIN = 16
"""Most tokens to wait for when each ends within a character, as tokens of a byte-level vocabulary may."""


class TextDecoder:
    """Decodes tokens as they come; a character whose bytes are spread over tokens waits for the last.

    Each step decodes the few tokens since the last whole character, together with those before it, because
    what a token says can depend on its left neighbour (a leading space, a byte of the same character).

    Args:
        tokenizer: any tokenizer with a decoder.
        context: token ids that come before the first one, such as the end of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._settle(list(context[-_LONGEST_CHARACTER:]))

    def decode(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._pending.append(token_id)
        text = self._text(self._context + self._pending)
        return "" if self._unfinished(text) else self._emit(text)

    def decode_run(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete, one after the other."""
        text = self._text([*self._context, *self._pending, *token_ids])
        if _REPLACEMENT in text:
            # A character is broken or unfinished, and where it begins shows one token at a time only.
            return "".join(map(self.decode, token_ids))
        self._pending += token_ids
        return self._emit(text)

    def flush(self) -> str:
        """What is left, with U+FFFD for a character that never became whole."""
        return self._emit(self._text(self._context + self._pending)) if self._pending else ""

    def drop_unfinished(self) -> int:
        """Forget the tokens of a character that is not whole yet; how many they were."""
        dropped = len(self._pending)
        self._pending = []
        return dropped

    def _unfinished(self, text: str) -> bool:
        if not text.endswith(_REPLACEMENT):
            return False
        broken = len(text) - len(text.rstrip(_REPLACEMENT))
        return len(self._pending) < (_LONGEST_CHAIN if broken == 1 else _LONGEST_CHARACTER)

    def _emit(self, text: str) -> str:
        new = text[len(self._prefix) :]
        # A broken byte spoils the whole run of bytes that it stands in, also those already shown.
        if _REPLACEMENT in new or not text.startswith(self._prefix):
            new = self._text(self._pending)
        self._settle(self._pending)
        return new

    def _settle(self, tokens: list[int]) -> None:
        self._context, self._pending = tokens, []
        # An answer that comes token by token settles on one at a time, and on the same ones again and again.
        self._prefix = _text_of(self._tokenizer, tokens[0]) if len(tokens) == 1 else self._text(tokens)

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False) if tokens else ""


@lru_cache(maxsize=2**15)
def _text_of(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=False)


class SpaceAfterNewline:
    """Removes the one space that some tokenizers leave behind every newline and tab when they decode."""

    def __init__(self, *, after_newline: bool) -> None:
        self._after_newline = after_newline

    def decode(self, text: str) -> str:
        """The text without those spaces; remembers a newline at its end for the next piece."""
        if not text:
            return text
        kept = text[1:] if self._after_newline and text[0] == " " else text
        self._after_newline = text[-1] in "\n\t"
        return kept.replace("\n ", "\n").replace("\t ", "\t")
