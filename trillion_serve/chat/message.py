"""What a few tokens add to a message.

These are made for every few tokens, so they are msgspec's structs rather than dataclasses.
"""

from msgspec import Struct
from msgspec.structs import replace


class ToolCallDelta(Struct, frozen=True):
    """A piece of one tool call.

    Attributes:
        index: which call of the message this belongs to, from 0.
        id: the call's id, on its first piece only.
        name: the function's name, on its first piece only.
        arguments: what this piece adds to the arguments' JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class MessageDelta(Struct, frozen=True):
    """What a few tokens add to a message."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __add__(self, other: "MessageDelta") -> "MessageDelta":
        if not other:
            return self
        if not self:
            return other
        return MessageDelta(
            self.reasoning + other.reasoning,
            self.content + other.content,
            _joined(self.tool_calls, other.tool_calls),
        )

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.tool_calls)


NOTHING = MessageDelta()
"""What most tokens add to most parts of an answer."""


def _joined(first: tuple[ToolCallDelta, ...], then: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
    """Pieces one after the other, no two of one call: clients take a call's index to come once in a chunk."""
    if not first or not then or first[-1].index != then[0].index:
        return first + then
    joined = replace(first[-1], arguments=first[-1].arguments + then[0].arguments)
    return (*first[:-1], joined, *then[1:])
