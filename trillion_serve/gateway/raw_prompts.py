"""Prompts that a client writes itself, without a chat template.

What stands in them is the client's: control tokens in a string count as such, where those in a chat message are
text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.gateway.errors import ApiError


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text. ``begin`` is the character that it begins in."""

    id: int
    begin: int


def encode_raw(tokenizer: ChatTokenizer, text: str, add_special_tokens: bool | None = None) -> list[Token]:
    """The tokens of a string.

    Args:
        tokenizer: the model's.
        text: may hold control tokens.
        add_special_tokens: whether the tokenizer puts the tokens around it that it puts around every text, such
            as one for its beginning. None puts them, but does not repeat one that the text begins with.
    """
    encoding = tokenizer.backend.encode(text, add_special_tokens=add_special_tokens is not False)
    ids = encoding.ids
    # Tokens that were put around the text stand at character 0 wherever they are.
    begins = accumulate((begin for begin, _ in encoding.offsets), max)
    tokens = [Token(token_id, begin) for token_id, begin in zip(ids, begins, strict=True)]
    repeated = len(ids) > 1 and ids[0] == ids[1] and ids[0] in tokenizer.hidden_ids
    adds = add_special_tokens is None and tokenizer.backend.num_special_tokens_to_add(False) > 0
    return tokens[1:] if repeated and adds else tokens


def check_token_ids(tokenizer: ChatTokenizer, token_ids: Iterable[int], param: str) -> None:
    """Refuse tokens that the tokenizer does not have: some engines would crash on them.

    Raises:
        ApiError: there is one; ``param`` is the field that it came in.
    """
    known = _vocabulary(tokenizer)
    unknown = next((token_id for token_id in token_ids if token_id not in known), None)
    if unknown is not None:
        raise ApiError(
            f"{param}: there is no token {unknown}; ids go from {min(known)} to {max(known)}",
            code="invalid_value",
            param=param,
        )


@lru_cache(maxsize=32)
def _vocabulary(tokenizer: ChatTokenizer) -> frozenset[int]:
    return frozenset(tokenizer.backend.get_vocab(with_added_tokens=True).values())
