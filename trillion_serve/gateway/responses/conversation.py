"""Items of the Responses API, from what a request gives to messages as the chat API has them."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.schema.response_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputMessage,
    InputText,
    Item,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from trillion_serve.gateway.schema.responses_request import (
    CallItem,
    CallOutputItem,
    InputItem,
    MessageItem,
    TextPart,
)


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{uuid4().hex}"


def items_of(given: str | Sequence[InputItem]) -> tuple[Item, ...]:
    """The items of a request, each with an id."""
    if isinstance(given, str):
        given = [MessageItem(role="user", content=given)]
    return tuple(map(_item, given))


def messages_of(items: Iterable[Item], instructions: str | None = None) -> list[dict[str, Any]]:
    """The messages that the model is shown. Reasoning is not among them.

    Raises:
        ApiError: there is the output of a call that nobody made.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    calls: set[str] = set()
    for item in items:
        match item:
            case InputMessage():
                messages.append({"role": item.role, "content": "\n".join(part.text for part in item.content)})
            case OutputMessage():
                messages.append({"role": "assistant", "content": "\n".join(part.text for part in item.content)})
            case FunctionCallItem():
                calls.add(item.call_id)
                _last_turn(messages).setdefault("tool_calls", []).append(_call(item))
            case FunctionCallOutputItem():
                if item.call_id not in calls:
                    raise ApiError(
                        f"there is an output of call {item.call_id!r}, and no such call before it",
                        code="invalid_value",
                        param="input",
                    )
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
    return messages


def _item(given: InputItem) -> Item:
    match given:
        case MessageItem():
            return _message(given)
        case CallItem():
            return FunctionCallItem(
                id=new_id("fc"),
                status="completed",
                call_id=given.call_id,
                name=given.name,
                arguments=given.arguments,
            )
        case CallOutputItem():
            output = "\n".join(_texts(given.output))
            return FunctionCallOutputItem(id=new_id("fco"), call_id=given.call_id, output=output)
    thoughts = [ReasoningText(text=part.text) for part in given.content or ()]
    return ReasoningItem(id=new_id("rs"), status="completed", content=thoughts)


def _message(given: MessageItem) -> Item:
    texts = _texts(given.content)
    if given.role == "assistant":
        answer = [OutputText(text=text) for text in texts]
        return OutputMessage(id=new_id("msg"), status="completed", content=answer)
    return InputMessage(id=new_id("msg"), role=given.role, content=[InputText(text=text) for text in texts])


def _texts(content: str | Sequence[TextPart]) -> list[str]:
    return [content] if isinstance(content, str) else [part.text for part in content]


def _last_turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's turn that calls belong to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _call(item: FunctionCallItem) -> dict[str, Any]:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}
