"""Finds the name and the arguments in the JSON text of one tool call while it is being written."""

import json
from enum import Enum

_SPACE = " \t\r\n"
_SCALAR = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ARGUMENTS = ("arguments", "parameters")


class _Expect(Enum):
    """What may come next in the call's object."""

    OPEN = "the object"
    FIRST_KEY = "a key, or the object's end"
    KEY = "a key"
    COLON = "the colon after a key"
    VALUE = "a value"
    COMMA = "a comma, or the object's end"
    END = "nothing"


class CallScanner:
    """Reads ``{"name": ..., "arguments": ...}`` character by character.

    It knows strings and the depth of brackets, and no more of JSON: what stands inside the arguments is the
    business of whoever parses them. Of keys that come twice, the first counts.

    Attributes:
        name: the function's name, once it is whole.
        done: the object is whole.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._expect = _Expect.OPEN
        self._key = ""
        self._text: list[str] = []
        self._depth = 0
        self._in_string = self._escaped = self._in_scalar = False
        self._arguments_begun = self._arguments_whole = self._in_arguments = False
        self._fresh: list[str] = []

    @property
    def done(self) -> bool:
        """Whether the object is whole."""
        return self._expect is _Expect.END

    def feed(self, char: str) -> bool:
        """Read a character; False if it cannot stand here, and then it has not been read."""
        if self._in_string:
            return self._read_string(char)
        if self._depth:
            return self._read_nested(char)
        if self._in_scalar:
            if char in _SCALAR:
                self._append(char)
                return True
            self._in_scalar = False
            return self._end_value() and self._read_structure(char)
        return self._read_structure(char)

    def take_arguments(self) -> str:
        """The arguments' JSON text that has come since the last call."""
        fresh, self._fresh = "".join(self._fresh), []
        return fresh

    @property
    def arguments_are_wrong(self) -> bool:
        """Whether arguments that are whole, and not taken yet, are no JSON object."""
        return self._arguments_whole and not _is_object("".join(self._fresh) or "{}")

    def _read_string(self, char: str) -> bool:
        self._append(char)
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            if not self._depth:
                return self._end_key() if self._expect is _Expect.COLON else self._end_value()
        return True

    def _read_nested(self, char: str) -> bool:
        self._append(char)
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if not self._depth:
                return self._end_value()
        return True

    def _read_structure(self, char: str) -> bool:
        if char in _SPACE:
            return True
        match self._expect, char:
            case _Expect.OPEN, "{":
                self._expect = _Expect.FIRST_KEY
            case ((_Expect.FIRST_KEY | _Expect.COMMA), "}"):
                self._expect = _Expect.END
            case _Expect.COMMA, ",":
                self._expect = _Expect.KEY
            case ((_Expect.FIRST_KEY | _Expect.KEY), '"'):
                self._expect = _Expect.COLON
                self._begin(char)
            case _Expect.COLON, ":":
                self._expect = _Expect.VALUE
            case _Expect.VALUE, _:
                return self._begin_value(char)
            case _:
                return False
        return True

    def _begin_value(self, char: str) -> bool:
        if char not in '"{[' and char not in _SCALAR:
            return False
        self._in_arguments = self._key in _ARGUMENTS and not self._arguments_begun
        self._arguments_begun = self._arguments_begun or self._in_arguments
        self._expect = _Expect.COMMA
        self._begin(char)
        return True

    def _begin(self, char: str) -> None:
        self._text = []
        self._in_string = char == '"'
        self._depth = int(char in "{[")
        self._in_scalar = not self._in_string and not self._depth
        self._append(char)

    def _append(self, char: str) -> None:
        self._text.append(char)
        if self._in_arguments and self._text[0] == "{":
            self._fresh.append(char)

    def _end_key(self) -> bool:
        key = _string("".join(self._text))
        self._key = key or ""
        return key is not None

    def _end_value(self) -> bool:
        text = "".join(self._text)
        if self._in_arguments:
            self._in_arguments, self._arguments_whole = False, True
            if text[0] == '"':
                written = _string(text)
                self._fresh.append(text if written is None else written.strip(_SPACE))
            elif text[0] != "{" and text != "null":
                self._fresh.append(text)
        elif self._key == "name" and self.name is None:
            self.name = _string(text)
            return self.name is not None
        return True


def _string(text: str) -> str | None:
    """What a JSON string says; None if the text is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, str) else None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (json.JSONDecodeError, RecursionError):
        return False
