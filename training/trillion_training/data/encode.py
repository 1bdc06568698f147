"""Tokenises data files into documents: which tokens there are and which of them are learned."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_training.data.jsonl import Chat, TextDocument, read_jsonl, read_numbered
from trillion_training.data.packing import Document
from trillion_training.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 1000


def encode_text(path: Path, tokenizer: "PreTrainedTokenizerBase", length: int) -> list[Document]:
    """Text documents between the first and the end token, every token learned; long ones are cut in pieces.

    Special tokens spelled out in the text are encoded as ordinary text.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    documents = []
    records = read_jsonl(path, TextDocument)
    while texts := [record.text for record in islice(records, _AT_ONCE)]:
        for ids in tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
            whole = [bos, *ids, eos]
            for start in range(0, len(whole), length):
                piece = whole[start : start + length]
                documents.append(Document(piece, [True] * len(piece)))
    return documents


def encode_chats(path: Path, tokenizer: "PreTrainedTokenizerBase", length: int) -> list[Document]:
    """Chats as the chat template writes them; what the assistant says in its turn is learned, and nothing else.

    Raises:
        DataError: a chat does not end with the assistant's answer, or is longer than a row.
    """
    return [_encode_chat(path, number, chat, tokenizer, length) for number, chat in read_numbered(path, Chat)]


def _encode_chat(path: Path, number: int, chat: Chat, tokenizer: "PreTrainedTokenizerBase", length: int) -> Document:
    if chat.messages[-1].role != "assistant":
        raise DataError(path, f"chat {chat.id!r} must end with an assistant message", number)
    encoded = tokenizer.apply_chat_template(
        [message.model_dump(exclude_none=True) for message in chat.messages],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, learned = encoded["input_ids"], encoded["assistant_masks"]
    if len(ids) > length:
        raise DataError(path, f"chat {chat.id!r} has {len(ids)} tokens, but batching.length is {length}", number)
    return Document(ids, [bool(flag) for flag in learned])
