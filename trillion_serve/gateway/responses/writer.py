"""The deltas of an answer to the items and events of a response.

A response that does not stream is written in the same way, so it is what its events add up to.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Any, ClassVar, Literal, TypeVar

from trillion_serve.chat.answer import AnswerDelta, AnswerFinish
from trillion_serve.chat.message import ToolCallDelta
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.responses.conversation import new_id
from trillion_serve.gateway.schema.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemEvent,
    PartEvent,
    ReasoningDelta,
    ReasoningDone,
    ResponseEvent,
    TextDelta,
    TextDone,
)
from trillion_serve.gateway.schema.response_items import (
    FunctionCallItem,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from trillion_serve.gateway.schema.responses_response import (
    ErrorCode,
    IncompleteDetails,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)

E = TypeVar("E", bound=Event)

_ERROR_CODES: dict[int, ErrorCode] = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
"""The API's words for what is not the server's fault, by HTTP status."""


class ResponseWriter:
    """Writes one response.

    Args:
        response: without output, in progress.

    Attributes:
        response: as it is at the moment.
    """

    def __init__(self, response: ResponseObject) -> None:
        self.response = response
        self._numbers = count()
        self._done: list[OutputItem] = []
        self._open: _OpenItem | None = None

    def begin(self) -> Iterator[Event]:
        """The events that come before the first item."""
        yield self._event(ResponseEvent, type="response.created", response=self.response)
        yield self._event(ResponseEvent, type="response.in_progress", response=self.response)

    def add(self, delta: AnswerDelta) -> Iterator[Event]:
        """What a delta adds."""
        if delta.message.reasoning:
            yield from self._write(_OpenReasoning, delta.message.reasoning)
        if delta.message.content:
            yield from self._write(_OpenMessage, delta.message.content)
        for call in delta.message.tool_calls:
            yield from self._write_call(call)

    def finish(self, last: AnswerDelta, usage: ResponseUsage) -> Iterator[Event]:
        """The end of the response. ``last`` has been added already."""
        finish: AnswerFinish | None = last.finish_reason
        cut = finish == "length"
        yield from self._close("incomplete" if cut else "completed")
        self._update(
            status="incomplete" if cut else "completed",
            completed_at=None if cut else int(time.time()),
            incomplete_details=IncompleteDetails() if cut else None,
            interventions=list(last.interventions) or None,
            usage=usage,
        )
        yield self._event(ResponseEvent, type=f"response.{self.response.status}", response=self.response)

    def fail(self, error: ApiError) -> Iterator[Event]:
        """The end of a response that broke off. Its last item stays as it is."""
        if self._open is not None:
            self._done.append(self._open.item("incomplete"))
            self._open = None
        code = _ERROR_CODES.get(error.status, "server_error")
        self._update(status="failed", error=ResponseError(code=code, message=error.message))
        yield self._event(ResponseEvent, type="response.failed", response=self.response)

    def _write(self, kind: type["_OpenText"], text: str) -> Iterator[Event]:
        if not isinstance(self._open, kind):
            yield from self._begin_item(kind(len(self._done) + (self._open is not None)))
        yield from self._extend(text)

    def _write_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if not isinstance(self._open, _OpenCall) or self._open.number != call.index:
            yield from self._begin_item(_OpenCall(len(self._done) + (self._open is not None), call))
        if call.arguments:
            yield from self._extend(call.arguments)

    def _begin_item(self, item: "_OpenItem") -> Iterator[Event]:
        yield from self._close("completed")
        self._open = item
        fields = {"output_index": item.index, "item": item.empty()}
        yield self._event(ItemEvent, type="response.output_item.added", **fields)
        for kind, values in item.opening():
            yield self._event(kind, output_index=item.index, item_id=item.id, **values)

    def _extend(self, text: str) -> Iterator[Event]:
        assert self._open is not None
        self._open.pieces.append(text)
        yield self._event(self._open.delta, output_index=self._open.index, item_id=self._open.id, delta=text)

    def _close(self, status: Literal["completed", "incomplete"]) -> Iterator[Event]:
        if self._open is None:
            return
        item, self._open = self._open, None
        for kind, values in item.closing():
            yield self._event(kind, output_index=item.index, item_id=item.id, **values)
        done = item.item(status)
        self._done.append(done)
        yield self._event(ItemEvent, type="response.output_item.done", output_index=item.index, item=done)

    def _update(self, **fields: Any) -> None:
        self.response = self.response.model_copy(update={"output": tuple(self._done), **fields})

    def _event(self, kind: type[E], **fields: Any) -> E:
        return kind(sequence_number=next(self._numbers), **fields)


_Fields = Iterator[tuple[type[Event], dict[str, Any]]]


class _OpenItem(ABC):
    """An item that is being written."""

    prefix: ClassVar[str]
    delta: ClassVar[type[Event]]

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = new_id(self.prefix)
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        """What has been written."""
        return "".join(self.pieces)

    @abstractmethod
    def item(self, status: ItemStatus) -> OutputItem:
        """The item as it is."""

    @abstractmethod
    def empty(self) -> OutputItem:
        """The item as it begins."""

    @abstractmethod
    def opening(self) -> _Fields:
        """The events that follow its beginning."""

    @abstractmethod
    def closing(self) -> _Fields:
        """The events before its end."""


class _OpenText(_OpenItem):
    """An item with one part, which is text."""

    part: ClassVar[type[OutputText] | type[ReasoningText]]
    done: ClassVar[type[Event]]

    def opening(self) -> _Fields:
        """The part begins."""
        yield PartEvent, {"type": "response.content_part.added", "part": self.part(text="")}

    def closing(self) -> _Fields:
        """The part is whole."""
        yield self.done, {"text": self.text}
        yield PartEvent, {"type": "response.content_part.done", "part": self.part(text=self.text)}


class _OpenReasoning(_OpenText):
    prefix = "rs"
    part = ReasoningText
    delta, done = ReasoningDelta, ReasoningDone

    def item(self, status: ItemStatus) -> OutputItem:
        return ReasoningItem(id=self.id, status=status, content=[ReasoningText(text=self.text)])

    def empty(self) -> OutputItem:
        return ReasoningItem(id=self.id, status="in_progress", content=[])


class _OpenMessage(_OpenText):
    prefix = "msg"
    part = OutputText
    delta, done = TextDelta, TextDone

    def item(self, status: ItemStatus) -> OutputItem:
        return OutputMessage(id=self.id, status=status, content=[OutputText(text=self.text)])

    def empty(self) -> OutputItem:
        return OutputMessage(id=self.id, status="in_progress", content=[])


class _OpenCall(_OpenItem):
    prefix = "fc"
    delta = ArgumentsDelta

    def __init__(self, index: int, call: ToolCallDelta) -> None:
        super().__init__(index)
        assert call.id is not None and call.name is not None, "the first piece of a call names it"
        self.number = call.index
        self._call_id, self._name = call.id, call.name

    def item(self, status: ItemStatus) -> OutputItem:
        return FunctionCallItem(id=self.id, status=status, call_id=self._call_id, name=self._name, arguments=self.text)

    def empty(self) -> OutputItem:
        return self.item("in_progress")

    def opening(self) -> _Fields:
        yield from ()

    def closing(self) -> _Fields:
        yield ArgumentsDone, {"name": self._name, "arguments": self.text}
