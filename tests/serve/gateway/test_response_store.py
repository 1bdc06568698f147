"""Responses are kept for a while, for whoever made them, and not without bound."""

import pytest

from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.responses.store import ResponseStore, StoredResponse, StoreSettings
from trillion_serve.gateway.schema.response_items import InputMessage, InputText
from trillion_serve.gateway.schema.responses_response import ReasoningConfig, ResponseObject, TextConfig


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def response(name: str, text: str = "") -> StoredResponse:
    made = ResponseObject(
        id=name,
        created_at=0,
        status="completed",
        instructions=None,
        max_output_tokens=None,
        metadata={},
        model="m",
        parallel_tool_calls=True,
        previous_response_id=None,
        reasoning=ReasoningConfig(),
        store=True,
        temperature=1.0,
        text=TextConfig(),
        tool_choice="auto",
        tools=[],
        top_p=1.0,
        user=None,
    )
    return StoredResponse(made, (InputMessage(id="msg", role="user", content=[InputText(text=text)]),))


def names(store: ResponseStore, *candidates: str) -> list[str]:
    """Which of these are kept for nobody in particular."""

    def kept(name: str) -> bool:
        try:
            return store.get(None, name).response.id == name
        except ApiError as error:
            assert (error.status, error.code) == (404, "response_not_found")
            return False

    return list(filter(kept, candidates))


def test_a_response_is_kept_until_its_time_is_over() -> None:
    clock = Clock()
    store = ResponseStore(StoreSettings(seconds=60), clock)
    store.put(None, response("a"))
    clock.seconds = 30
    store.put(None, response("b"))
    clock.seconds = 59
    assert names(store, "a", "b") == ["a", "b"]
    clock.seconds = 61
    assert names(store, "a", "b") == ["b"]
    clock.seconds = 91
    assert len(store) == 0


def test_the_oldest_make_room_when_there_are_too_many() -> None:
    store = ResponseStore(StoreSettings(count=3))
    for name in "abc":
        store.put(None, response(name))
    store.get(None, "a")
    store.put(None, response("d"))
    assert names(store, "a", "b", "c", "d") == ["a", "c", "d"]


def test_the_oldest_make_room_when_they_are_too_large() -> None:
    size = response("a").bytes
    store = ResponseStore(StoreSettings(count=100, bytes=4 * size))
    for name in "abcd":
        store.put(None, response(name))
    assert len(store) == 4
    store.put(None, response("e", "가" * (size // 2)))
    assert names(store, *"abcde") == ["d", "e"]


def test_one_that_is_larger_than_the_store_is_not_kept_and_moves_nothing() -> None:
    store = ResponseStore(StoreSettings(bytes=2 * response("a").bytes))
    store.put(None, response("a"))
    store.put(None, response("b", "x" * 2 * response("a").bytes))
    assert names(store, "a", "b") == ["a"]


def test_a_response_is_there_for_the_key_that_made_it_only() -> None:
    store = ResponseStore()
    store.put("mine", response("a"))
    assert store.get("mine", "a").response.id == "a"
    for other in ("yours", None):
        with pytest.raises(ApiError, match="no response 'a'"):
            store.get(other, "a")
        with pytest.raises(ApiError):
            store.delete(other, "a")
    store.delete("mine", "a")
    assert len(store) == 0
