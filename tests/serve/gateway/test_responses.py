"""``/v1/responses`` through the real client over a real socket.

What the client's own types say is the oracle: every event and every response has to be one of theirs.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter

from support.running_gateway import CONTENT, MODEL, REASONING, Gateway, run_gateway
from trillion_serve.chat.structure import calls_or_form
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.chat.tools import ToolUse
from trillion_serve.engines.protocol import Grammar
from trillion_serve.gateway.security.front import FrontSettings
from trillion_serve.gateway.security.keys import ApiKey, Keyring, digest_of, new_secret

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOL: Any = {"type": "function", "name": "add", "parameters": PARAMETERS, "strict": True}
CALL = '<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call>'
FORM: Any = {"type": "json_schema", "name": "point", "schema": PARAMETERS, "strict": True}
CHUNKS = pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 3}, {"chunk": 1000}], indirect=True)


def create(gateway: Gateway, **options: Any) -> Any:
    return gateway.client.responses.create(**{"model": MODEL, "input": "둘은?", **options})


def post(gateway: Gateway, **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/responses", json={"model": MODEL, "input": "둘은?", **body}, timeout=30)


def events(gateway: Gateway, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, each checked against the client's types and against the name that it bears."""
    answer = post(gateway, stream=True, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in answer.text.split("\n\n")]
    assert frames.pop() == [""]
    found = []
    for name, data in frames:
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert type(EVENT.validate_python(event)).model_fields["type"].annotation.__args__ == (event["type"],)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def without_ids(value: Any) -> Any:
    """The same without what differs from one response to the next."""
    if isinstance(value, dict):
        changing = {"id", "item_id", "call_id", "created_at", "completed_at", "cached_tokens"}
        return {name: without_ids(item) for name, item in value.items() if name not in changing}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def prompts(gateway: Gateway, tokenizer: ChatTokenizer) -> list[str]:
    """What the engine was asked, as text."""
    return [
        tokenizer.backend.decode(list(request.prompt_token_ids), skip_special_tokens=False)
        for request in gateway.requests
    ]


def test_a_response_has_its_reasoning_and_its_answer(gateway: Gateway) -> None:
    response = create(gateway, metadata={"a": "b"}, user="me", temperature=0.5)
    reasoning, message = response.output
    assert (reasoning.type, reasoning.summary, reasoning.content[0].text) == ("reasoning", [], REASONING)
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert response.output_text == message.content[0].text == CONTENT
    assert (response.object, response.status, response.model) == ("response", "completed", MODEL)
    assert (response.error, response.incomplete_details, response.previous_response_id) == (None, None, None)
    assert (response.metadata, response.user) == ({"a": "b"}, "me")
    assert (response.temperature, response.top_p) == (0.5, 0.5)
    assert response.completed_at >= response.created_at
    Response.model_validate(post(gateway).json(), strict=True)


def test_usage_has_the_same_figures_as_the_chat_endpoint(gateway: Gateway) -> None:
    chat, usage = gateway.post().json()["usage"], create(gateway).usage
    assert usage.input_tokens == chat["prompt_tokens"]
    assert usage.output_tokens == chat["completion_tokens"]
    assert usage.total_tokens == chat["total_tokens"]
    assert usage.output_tokens_details.reasoning_tokens == chat["completion_tokens_details"]["reasoning_tokens"]
    assert usage.input_tokens_details.cached_tokens == usage.input_tokens - 1


def test_the_events_of_a_response_come_in_order(gateway: Gateway) -> None:
    found = events(gateway)
    kinds = [event["type"].removeprefix("response.") for event in found]
    once = [kind for at, kind in enumerate(kinds) if kinds[at - 1] != kind]
    assert once == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert found[0]["response"]["status"] == found[1]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert [event["output_index"] for event in found if event["type"] == "response.output_item.done"] == [0, 1]
    items = {event["item"]["id"] for event in found if "item" in event}
    assert {event["item_id"] for event in found if "item_id" in event} == items


@CHUNKS
@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (f"{REASONING}\n</think>\n\n{CONTENT}", {}),
        (f"{REASONING}\n</think>\n\n{CONTENT}", {"stop": [". "]}),
        (f"{REASONING}\n</think>\n\n{CONTENT}", {"max_output_tokens": 24}),
        (CONTENT, {"reasoning": {"effort": "none"}}),
        (CALL, {"tools": [TOOL]}),
        (f"음.{CALL}{CALL.replace('1', '22')}", {"tools": [TOOL]}),
        (f"{CALL}\n{CALL}", {"tools": [TOOL], "text": {"format": FORM}}),
        ('{"x":1}', {"tools": [TOOL], "text": {"format": FORM}}),
    ],
)
def test_a_stream_adds_up_to_the_response(gateway: Gateway, reply: str, body: dict[str, Any]) -> None:
    gateway.reply = reply
    found = events(gateway, temperature=0, **body)
    last = found[-1]["response"]
    assert without_ids(last) == without_ids(post(gateway, temperature=0, **body).json())
    assert [event["item"] for event in found if event["type"] == "response.output_item.done"] == last["output"]
    for index, item in enumerate(last["output"]):
        deltas = [event["delta"] for event in found if event.get("output_index") == index and "delta" in event]
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert "".join(deltas) == whole


def test_the_client_s_own_accumulator_reads_the_stream(gateway: Gateway) -> None:
    with gateway.client.responses.stream(model=MODEL, input="둘은?") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == CONTENT
    gateway.reply = CALL
    with gateway.client.responses.stream(model=MODEL, input="둘은?", tools=[TOOL]) as stream:
        list(stream)
        (call,) = stream.get_final_response().output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"x": 1})


def test_a_response_that_runs_out_of_tokens_is_incomplete(gateway: Gateway) -> None:
    response = create(gateway, max_output_tokens=24)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[-1].status == "incomplete"
    assert events(gateway, max_output_tokens=24)[-1]["type"] == "response.incomplete"


def test_tools_are_called_and_answered(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    gateway.reply = f"잠깐.{CALL}"
    first = create(gateway, tools=[TOOL], tool_choice="auto")
    message, call = first.output
    assert (message.content[0].text, call.name, json.loads(call.arguments)) == ("잠깐.", "add", {"x": 1})
    assert [tool.name for tool in first.tools] == ["add"]
    gateway.reply = CONTENT
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "결과"}
    create(gateway, tools=[TOOL], previous_response_id=first.id, input=[output])
    create(gateway, tools=[TOOL], input=[{"role": "user", "content": "둘은?"}, *dumped(first.output), output])
    _, chained, by_hand = prompts(gateway, tokenizer)
    assert chained == by_hand
    assert '잠깐.<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call>' in chained.replace("\n", "")
    assert "결과" in chained


def dumped(items: Sequence[Any]) -> list[dict[str, Any]]:
    """Items as a client sends them back."""
    return [item.model_dump(exclude_none=True) for item in items]


def test_a_function_that_must_be_called_is(gateway: Gateway) -> None:
    gateway.reply = '{"name": "add", "arguments": {"x": 1}}'
    choice = {"type": "function", "name": "add"}
    response = create(gateway, tools=[TOOL], tool_choice=choice, reasoning={"effort": "none"})
    assert [(item.type, item.name) for item in response.output] == [("function_call", "add")]
    assert (response.tool_choice.type, response.tool_choice.name) == ("function", "add")


def test_a_schema_reaches_the_engine_as_a_grammar(gateway: Gateway) -> None:
    gateway.reply = '{"x": 1}'
    response = create(gateway, text={"format": FORM}, reasoning={"effort": "none"})
    assert response.output_text == '{"x": 1}'
    assert response.text.format.to_dict() == FORM
    grammar = gateway.requests[0].sampling.grammar
    assert grammar is not None and json.loads(grammar.value) == PARAMETERS


def test_beside_a_schema_a_function_may_be_called(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    use = ToolUse({"add": PARAMETERS})
    form = Grammar("json_schema", json.dumps(PARAMETERS))
    for reply, kinds in ((f"{CALL}\n{CALL}", ["function_call"] * 2), ('{"x":1}', ["message"])):
        gateway.reply = reply
        response = create(gateway, tools=[TOOL], text={"format": FORM})
        assert [item.type for item in response.output] == kinds
        assert gateway.requests.pop().sampling.grammar == calls_or_form(form, use, tokenizer)
        create(gateway, tools=[TOOL], text={"format": FORM}, parallel_tool_calls=False)
        one = calls_or_form(form, replace(use, parallel=False), tokenizer)
        assert gateway.requests.pop().sampling.grammar == one


def test_input_and_instructions_become_the_same_prompt_as_in_chat(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    messages = [
        {"role": "system", "content": "짧게."},
        {"role": "user", "content": "둘은?"},
        {"role": "assistant", "content": "둘."},
        {"role": "user", "content": "셋은?\n넷은?"},
    ]
    gateway.post(messages=messages)
    parts = [{"type": "input_text", "text": text} for text in ("셋은?", "넷은?")]
    create(
        gateway,
        instructions="짧게.",
        input=[
            {"role": "user", "content": "둘은?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "비밀"}]},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
             "content": [{"type": "output_text", "text": "둘.", "annotations": []}]},
            {"type": "message", "role": "user", "content": parts},
        ],
    )  # fmt: skip
    chat, responses = prompts(gateway, tokenizer)
    assert chat == responses


def test_a_response_follows_up_another_without_its_instructions(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    first = create(gateway, instructions="존댓말로.")
    second = create(gateway, input="셋은?", previous_response_id=first.id)
    third = create(gateway, input="넷은?", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    gateway.post(
        messages=[
            {"role": "user", "content": "둘은?"},
            {"role": "assistant", "content": CONTENT},
            {"role": "user", "content": "셋은?"},
            {"role": "assistant", "content": CONTENT},
            {"role": "user", "content": "넷은?"},
        ]
    )
    *_, chained, chat = prompts(gateway, tokenizer)
    assert chained == chat


def test_responses_are_kept_until_they_are_deleted(gateway: Gateway) -> None:
    client = gateway.client
    made = create(gateway)
    assert client.responses.retrieve(made.id) == made
    streamed = events(gateway)[-1]["response"]
    assert httpx.get(f"{gateway.url}/responses/{streamed['id']}").json() == streamed
    client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            call(made.id)
        assert (caught.value.code, caught.value.param) == ("response_not_found", "response_id")
        assert "it has expired, was deleted, or was never stored" in caught.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        create(gateway, previous_response_id=made.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


def test_with_keys_a_response_is_there_for_the_key_that_made_it(tokenizer: ChatTokenizer) -> None:
    mine, yours = new_secret(), new_secret()
    keys = Keyring([ApiKey("mine", digest_of(mine)), ApiKey("yours", digest_of(yours))])
    with run_gateway(tokenizer, front=FrontSettings(keys)) as gateway:
        me, you = (gateway.client.with_options(api_key=key) for key in (mine, yours))
        made = me.responses.create(model=MODEL, input="둘은?")
        for call in (you.responses.retrieve, you.responses.delete, you.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
        with pytest.raises(openai.BadRequestError):
            you.responses.create(model=MODEL, input="셋은?", previous_response_id=made.id)
        assert me.responses.retrieve(made.id) == made


def test_what_is_not_to_be_kept_is_not(gateway: Gateway) -> None:
    made = create(gateway, store=False)
    assert made.store is False
    with pytest.raises(openai.NotFoundError):
        gateway.client.responses.retrieve(made.id)


def test_a_response_that_has_ended_cannot_be_cancelled(gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError, match="closing its connection"):
        gateway.client.responses.cancel(create(gateway).id)


def test_the_items_that_went_in_can_be_read_page_by_page(gateway: Gateway) -> None:
    first = create(gateway, input=[{"role": "user", "content": text} for text in ("가", "나")])
    second = create(gateway, input="다", previous_response_id=first.id)
    listed = gateway.client.responses.input_items.list(second.id, order="asc", limit=2)
    texts = [item.content[0].text for item in listed]  # type: ignore[union-attr]
    assert texts == ["가", "나", REASONING, CONTENT, "다"]
    newest = httpx.get(f"{gateway.url}/responses/{second.id}/input_items", params={"limit": 1}).json()
    assert (newest["data"][0]["content"][0]["text"], newest["has_more"]) == ("다", True)
    assert newest["first_id"] == newest["last_id"] == newest["data"][0]["id"]
    for item in httpx.get(f"{gateway.url}/responses/{second.id}/input_items").json()["data"]:
        ITEM.validate_python(item)


def test_a_refusal_of_an_earlier_turn_is_text(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    question, text = {"role": "user", "content": "둘은?"}, "그건 안 됩니다."
    for content in (text, [{"type": "refusal", "refusal": text}]):
        create(gateway, input=[question, {"type": "message", "role": "assistant", "content": content}, question])
    first, second = prompts(gateway, tokenizer)
    assert text in first
    assert first == second


def test_what_is_not_taken_is_named(gateway: Gateway) -> None:
    parts = [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "data:,"}]
    message = post(gateway, input=[{"role": "user", "content": parts}]).json()["error"]["message"]
    assert message == "input[0].content: only text parts are taken; part 1 is input_image"
    message = post(gateway, input=[{"type": "computer_call"}]).json()["error"]["message"]
    assert message.startswith("input[0]: items of type computer_call are not taken, only message, function_call,")


def test_nulls_and_unknown_fields_are_no_errors(gateway: Gateway) -> None:
    names = "instructions metadata text reasoning tools tool_choice previous_response_id store stop include background"
    answer = post(gateway, **dict.fromkeys(names.split()), prompt_cache_key="x", anything=1)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("gateway", [{"dies_after": 12}], indirect=True)
def test_an_engine_that_dies_in_a_stream_fails_the_response(gateway: Gateway) -> None:
    *_, item, last = events(gateway)
    assert item["type"] != "response.output_item.done"
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "server_error"
    assert last["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_is_a_503_before_the_first_byte(gateway: Gateway, stream: bool) -> None:
    gateway.engine.kill()
    answer = post(gateway, stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": None}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": 1}, "input", "invalid_value"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content", "unsupported_field"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "unsupported_field"),
        ({"input": ["x"]}, "input[0]", "invalid_value"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 5000}, "max_output_tokens", "context_length_exceeded"),
        ({"input": "x" * 9000}, "input", "context_length_exceeded"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_field"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "invalid_value"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", "invalid_value"),
        ({"metadata": {"k" * 65: "x"}}, f"metadata.{'k' * 65}", "invalid_value"),
        ({"metadata": {str(key): "x" for key in range(17)}}, "metadata", "invalid_value"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "contradiction"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    gateway: Gateway, body: dict[str, Any], param: str | None, code: str
) -> None:
    answer = post(gateway, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)
