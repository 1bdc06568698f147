"""Tool calls in what a model writes.

The model writes each call as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. A client gets the name
as soon as it is whole, and the arguments as they come, in exactly the JSON text that the model wrote.

What is no call stays content, tags included. Once its name has gone out a call stands, whatever follows:
if the JSON breaks, or the answer is cut off, its arguments end there, as they do with every API that streams
them, and a client sees that when it parses them.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trillion_model.vaetki.chat_format import TOOL_CALL_END, TOOL_CALL_START
from trillion_serve.chat.message import MessageDelta, ToolCallDelta
from trillion_serve.chat.overlap import longest_overlap
from trillion_serve.chat.tool_scanner import CallScanner

_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What an answer may call, and whether it must.

    Attributes:
        parameters: the JSON Schema of each function's arguments, by the function's name.
        required: the answer must begin with a call.
        parallel: it may make several.
        or_form: it has calls and nothing else, or else it has a form of its own and no calls, whatever it spells.
    """

    parameters: Mapping[str, Mapping[str, Any]]
    required: bool = False
    parallel: bool = True
    or_form: bool = False


class ToolCallDecoder:
    """Text in pieces to content and tool calls, the same wherever the pieces are cut.

    Space before a call belongs to the format and is dropped, and so is space behind the last one.

    Args:
        use: what may be called. Without ``parallel``, what comes after the first call is ignored.
    """

    def __init__(self, use: ToolUse) -> None:
        self._use = use
        self._held = ""
        self._call: CallScanner | None = None
        self._raw = ""
        self._announced = self._sent_arguments = False
        self._closing = self._after_call = False
        self._undecided, self._has_form = use.or_form, False
        self._calls = 0
        self._delta = MessageDelta()

    @property
    def full(self) -> bool:
        """Whether all calls that may be made have been made."""
        return self._calls > 0 and not self._use.parallel and self._call is None and not self._closing

    def decode(self, text: str) -> MessageDelta:
        """What a piece of text adds."""
        while text and not self.full:
            if self._has_form:
                self._add_content(text)
                break
            if self._call is not None:
                text = self._read_call(self._call, text)
            elif self._closing:
                text = self._read_closing(text)
            else:
                text = self._read_content(text)
        return self._take()

    def flush(self) -> MessageDelta:
        """What was held back in case more would come. Call once, at the end."""
        if self._call is not None and not self._announced:
            self._add_content(self._raw)
        elif self._call is None and not self._closing and not (self._after_call and not self._held.strip(_SPACE)):
            self._add_content(self._held)
        self._call, self._held = None, ""
        return self._take()

    def _read_content(self, text: str) -> str:
        text, self._held = self._held + text, ""
        if self._undecided and (word := text.lstrip(_SPACE)):
            self._undecided = word != TOOL_CALL_START and TOOL_CALL_START.startswith(word)
            self._has_form = not self._undecided and not word.startswith(TOOL_CALL_START)
            if self._has_form:
                return text
        content, tag, rest = text.partition(TOOL_CALL_START)
        if not tag:
            content = content[: len(content) - longest_overlap(content, (TOOL_CALL_START,))]
        shown = content.rstrip(_SPACE)
        self._add_content(shown)
        if not tag:
            self._held = text[len(shown) :]
            return ""
        self._call, self._announced = CallScanner(), False
        self._raw = content[len(shown) :] + tag
        return rest

    def _read_call(self, call: CallScanner, text: str) -> str:
        for at, char in enumerate(text):
            if not call.feed(char) or not self._announce(call) or (call.done and not self._announced):
                return self._break_off(call, text[at:])
            if call.done:
                return self._end(call, text[at + 1 :])
            if not self._announced:
                self._raw += char
        self._add_arguments(call.take_arguments() if self._announced else "")
        return ""

    def _announce(self, call: CallScanner) -> bool:
        """Send the name once it is whole; False if this is no call that may be made."""
        if call.name is None or self._announced:
            return True
        if call.name not in self._use.parameters or call.arguments_are_wrong:
            return False
        self._announced, self._sent_arguments, self._raw = True, False, ""
        self._calls += 1
        delta = ToolCallDelta(self._calls - 1, id=f"call_{secrets.token_hex(12)}", name=call.name)
        self._delta += MessageDelta(tool_calls=(delta,))
        return True

    def _break_off(self, call: CallScanner, rest: str) -> str:
        """Give back what is no call, or end one that has been announced."""
        self._call = None
        if self._announced:
            self._add_arguments(call.take_arguments())
            self._closing = True
        else:
            self._add_content(self._raw)
        return rest

    def _end(self, call: CallScanner, rest: str) -> str:
        arguments = call.take_arguments()
        self._add_arguments(arguments if arguments or self._sent_arguments else "{}")
        self._call, self._closing = None, True
        return rest

    def _read_closing(self, text: str) -> str:
        text, self._held = self._held + text, ""
        tag = text.lstrip(_SPACE)
        if TOOL_CALL_END.startswith(tag) and tag != TOOL_CALL_END:
            self._held = text
            return ""
        self._closing, self._after_call = False, True
        return tag.removeprefix(TOOL_CALL_END) if tag.startswith(TOOL_CALL_END) else text

    def _add_content(self, content: str) -> None:
        if content:
            self._after_call = False
            self._delta += MessageDelta(content=content)

    def _add_arguments(self, arguments: str) -> None:
        if arguments:
            self._sent_arguments = True
            self._delta += MessageDelta(tool_calls=(ToolCallDelta(self._calls - 1, arguments=arguments),))

    def _take(self) -> MessageDelta:
        delta, self._delta = self._delta, MessageDelta()
        return delta
