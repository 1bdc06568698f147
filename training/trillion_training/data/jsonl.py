"""The data files: JSON lines, each line checked as it is read.

A text file holds ``{"text": ...}`` a line, one document each. A chat file holds one conversation a line:

    {"id": "...", "messages": [{"role": "user", "content": "..."},
                               {"role": "assistant", "reasoning": "...", "content": "..."}]}

``reasoning`` may be absent: the answer is then given without thinking. Problems to evaluate on are chats that also
carry ``skill``, ``language``, ``key`` and ``answer``, which an exact checker takes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trillion_training.errors import DataError

Record = TypeVar("Record", bound="JsonRecord")


class JsonRecord(BaseModel):
    """A line of a data file; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextDocument(JsonRecord):
    """One document of plain text."""

    text: str = Field(min_length=1)


class ChatMessage(JsonRecord):
    """One turn; only an assistant reasons."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning: str | None = None


class Chat(JsonRecord):
    """One conversation, ending with the assistant's turn; fields of other uses are passed over."""

    model_config = ConfigDict(extra="ignore")

    id: str
    messages: list[ChatMessage] = Field(min_length=1)


class ProblemRecord(Chat):
    """A conversation whose answer can be checked exactly."""

    skill: str
    language: Literal["ko", "en"]
    key: str
    answer: str


def read_jsonl(path: Path, record: type[Record]) -> Iterator[Record]:
    """Read a data file line by line; empty lines are skipped.

    Raises:
        DataError: the file is missing, or a line is not such a record; names the line.
    """
    return (parsed for _, parsed in read_numbered(path, record))


def read_numbered(path: Path, record: type[Record]) -> Iterator[tuple[int, Record]]:
    """:func:`read_jsonl`, each record with the number of its line, from 1."""
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from error
    with file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse(path, number, line, record)
        except UnicodeDecodeError as error:
            raise DataError(path, f"is not UTF-8 text: {error.reason} at byte {error.start}") from error


def write_jsonl(path: Path, records: Iterable[JsonRecord]) -> int:
    """Write records one a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json(exclude_none=True) + "\n")
            count += 1
    return count


def _parse(path: Path, number: int, line: str, record: type[Record]) -> Record:
    try:
        return record.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        problem = f"{field}: {first['msg']}" if field else first["msg"]
        raise DataError(path, f"not a {record.__name__}: {problem}", number) from error
