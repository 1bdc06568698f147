"""Tool calling through the real client over a real socket."""

import json
from typing import Any

import pytest

from support.running_gateway import MODEL, Gateway
from trillion_serve.chat.structure import calls_or_form
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.chat.tools import ToolUse
from trillion_serve.engines.protocol import GenerateRequest, Grammar

MESSAGES: Any = [{"role": "user", "content": "서울과 부산의 날씨는?"}]
WEATHER = {
    "type": "object",
    "properties": {"도시": {"type": "string"}, "단위": {"enum": ["섭씨", "화씨"]}},
    "required": ["도시"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "description": "날씨", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
SEOUL = r'{"도시": "서울 \"특별시\" \uc11c</tool_call>", "단위": "섭씨"}'
BUSAN = '{"도시": "부산 😀\\n"}'
NAMED: Any = {"type": "function", "function": {"name": "now"}}


def call(arguments: str, name: str = "get_weather") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def allowed(mode: str, *names: str) -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def create(gateway: Gateway, **options: Any) -> Any:
    options = {"messages": MESSAGES, "tools": TOOLS, **options}
    return gateway.client.chat.completions.create(model=MODEL, **options)


def streamed(gateway: Gateway, **options: Any) -> Any:
    """What the client's own helper makes of a stream."""
    with gateway.client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=TOOLS, **options) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def calls_of(choice: Any) -> list[tuple[str, str]]:
    return [(one.function.name, one.function.arguments) for one in choice.message.tool_calls or ()]


def obedient(request: GenerateRequest) -> str:
    """A model that calls what the grammar holds it to, and else adds nothing."""
    grammar = request.sampling.grammar
    if grammar is None:
        return ""
    name = json.loads(grammar.value)["anyOf"][-1]["properties"]["name"]["const"]
    return f'{{"name": "{name}", "arguments": {{}}}}'


def test_calls_come_with_ids_names_and_arguments_to_the_letter(gateway: Gateway) -> None:
    gateway.reply = f"찾아 보겠습니다.\n{call(SEOUL)}\n{call(BUSAN)}"
    choice = create(gateway).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "찾아 보겠습니다."
    assert calls_of(choice) == [("get_weather", SEOUL), ("get_weather", BUSAN)]
    assert json.loads(choice.message.tool_calls[0].function.arguments)["도시"] == '서울 "특별시" 서</tool_call>'
    first, second = choice.message.tool_calls
    assert first.id != second.id and first.id.startswith("call_") and first.type == "function"


@pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 5}, {"chunk": 1000}], indirect=True)
@pytest.mark.parametrize(
    ("reply", "options"),
    [
        (f"{call(SEOUL)}\n{call(BUSAN)}", {}),
        (f"먼저\n{call('{}', 'now')}\n그리고\n{call(BUSAN)}", {}),
        (call(SEOUL), {"n": 3}),
        (call(SEOUL) + call(BUSAN), {"parallel_tool_calls": False}),
        (call(BUSAN) + " 끝. 더", {"stop": ["끝"]}),
        (f"{call('{}', 'unknown')} 답", {}),
        (call(SEOUL), {"max_tokens": 30}),
        (obedient, {"tool_choice": "required"}),
        (obedient, {"tool_choice": NAMED}),
    ],
)
def test_a_stream_adds_up_to_the_answer(gateway: Gateway, reply: Any, options: dict[str, Any]) -> None:
    gateway.reply = reply
    whole = create(gateway, **options).choices
    for one, other in zip(whole, _raw_stream(gateway, options), strict=True):
        assert (one.message.content or "", calls_of(one), one.finish_reason) == other
    if "max_tokens" not in options:  # Which the helper takes for a failure.
        for one, other in zip(whole, streamed(gateway, **options).choices, strict=True):
            assert (other.message.content or "", calls_of(other)) == (one.message.content or "", calls_of(one))
            assert other.finish_reason == one.finish_reason


def _raw_stream(gateway: Gateway, options: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]], str | None]]:
    """Chunks put together by hand: content, calls and finish reason of every choice."""
    content: dict[int, str] = {}
    calls: dict[int, list[list[str]]] = {}
    finish: dict[int, str | None] = {}
    for chunk in create(gateway, stream=True, **options):
        for choice in chunk.choices:
            content[choice.index] = content.get(choice.index, "") + (choice.delta.content or "")
            finish[choice.index] = choice.finish_reason
            mine = calls.setdefault(choice.index, [])
            pieces = choice.delta.tool_calls or []
            assert len({piece.index for piece in pieces}) == len(pieces)
            for piece in pieces:
                if piece.index == len(mine):
                    assert piece.id and piece.type == "function"
                    mine.append([piece.function.name, ""])
                mine[piece.index][1] += piece.function.arguments
    return [(content[i], [(name, arguments) for name, arguments in calls[i]], finish[i]) for i in sorted(content)]


@pytest.mark.parametrize("gateway", [{"chunk": 1}], indirect=True)
def test_arguments_are_streamed_as_they_come(gateway: Gateway) -> None:
    gateway.reply = call(SEOUL)
    chunks = [chunk.choices[0].delta.tool_calls for chunk in create(gateway, stream=True)]
    pieces = [piece for pieces in chunks for piece in pieces or ()]
    assert (pieces[0].function.name, pieces[0].function.arguments) == ("get_weather", "")
    assert len(pieces) > 10
    assert "".join(piece.function.arguments for piece in pieces) == SEOUL


def test_without_parallel_calls_the_engine_stops_after_the_first(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    gateway.reply = call(SEOUL) + call(BUSAN)
    answer = create(gateway, parallel_tool_calls=False)
    assert calls_of(answer.choices[0]) == [("get_weather", SEOUL)]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage.completion_tokens == len(tokenizer.encode(call(SEOUL)))


@pytest.mark.parametrize("options", [{"tool_choice": "none"}, {"tools": None}])
def test_without_tools_a_call_is_content(gateway: Gateway, options: dict[str, Any]) -> None:
    gateway.reply = f"생각\n</think>\n\n{call(SEOUL)}"
    message = create(gateway, **options).choices[0].message
    assert (message.content, message.tool_calls) == (call(SEOUL), None)


def test_a_call_of_a_function_that_was_not_offered_is_content(gateway: Gateway) -> None:
    gateway.reply = call("{}", "now")
    choice = create(gateway, tool_choice=allowed("auto", "get_weather")).choices[0]
    assert (choice.message.content, choice.finish_reason) == (gateway.reply, "stop")


def test_the_model_is_told_of_the_tools_that_it_may_call(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    gateway.reply = "답"
    for choice in ("auto", allowed("auto", "now"), "none"):
        create(gateway, tool_choice=choice, reasoning_effort="none")
    prompts = [tokenizer.backend.decode(list(r.prompt_token_ids), skip_special_tokens=False) for r in gateway.requests]
    assert ['"get_weather"' in prompt for prompt in prompts] == [True, False, False]
    assert ['"now"' in prompt for prompt in prompts] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "names", "parts"),
    [
        ({"tool_choice": "required"}, ["get_weather", "now"], 2),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["get_weather", "now"], 1),
        ({"tool_choice": allowed("required", "get_weather")}, ["get_weather"], 2),
        ({"tool_choice": NAMED}, ["now"], 1),
    ],
)
def test_a_call_that_must_come_is_held_to_a_grammar(
    gateway: Gateway, options: dict[str, Any], names: list[str], parts: int
) -> None:
    gateway.reply = obedient
    choice = create(gateway, **options).choices[0]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert calls_of(choice) == [(names[-1], "{}")]
    first, *rest = [request.sampling.grammar for request in gateway.requests]
    assert first is not None and first.kind == "json_schema"
    schema = json.loads(first.value)
    assert [one["properties"]["name"]["const"] for one in schema["anyOf"]] == names
    if "get_weather" in names:
        assert schema["$defs"]["get_weather"] == WEATHER
    assert rest == [None] * (parts - 1)


def test_more_calls_may_follow_the_one_that_must_come(gateway: Gateway) -> None:
    gateway.reply = lambda request: obedient(request) or "\n" + call(BUSAN)
    choice = create(gateway, tool_choice="required").choices[0]
    assert calls_of(choice) == [("now", "{}"), ("get_weather", BUSAN)]


FORM: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": WEATHER}}
PARAMETERS = {"get_weather": WEATHER, "now": {"type": "object", "properties": {}, "additionalProperties": False}}
SCHEMA = Grammar("json_schema", json.dumps(WEATHER, ensure_ascii=False))
TAGGED = '{"도시":"<tool_call>{","name":"now"}'


@pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 1000}], indirect=True)
@pytest.mark.parametrize(
    ("reply", "content", "calls"),
    [
        (f"{call(SEOUL)}\n{call('{}', 'now')}", "", [("get_weather", SEOUL), ("now", "{}")]),
        (BUSAN, BUSAN, []),
        (TAGGED, TAGGED, []),
    ],
)
def test_beside_a_form_the_model_calls_or_answers_in_the_form(
    gateway: Gateway, tokenizer: ChatTokenizer, reply: str, content: str, calls: list[tuple[str, str]]
) -> None:
    gateway.reply = reply
    whole = create(gateway, response_format=FORM, n=2).choices
    finish = "tool_calls" if calls else "stop"
    assert [(one.message.content or "", calls_of(one), one.finish_reason) for one in whole] == [
        (content, calls, finish)
    ] * 2
    assert _raw_stream(gateway, {"response_format": FORM, "n": 2}) == [(content, calls, finish)] * 2
    expected = calls_or_form(SCHEMA, ToolUse(PARAMETERS), tokenizer)
    assert [request.sampling.grammar for request in gateway.requests] == [expected] * 4


@pytest.mark.parametrize(
    ("options", "form", "use"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar("json_schema", '{"type": "object"}'), {}),
        ({"extra_body": {"guided_json": WEATHER}}, SCHEMA, {}),
        ({"extra_body": {"structured_outputs": {"choice": ["예", "아니오"]}}}, Grammar("regex", "(예)|(아니오)"), {}),
        ({"extra_body": {"guided_grammar": 'root ::= "예"'}}, Grammar("ebnf", 'root ::= "예"'), {}),
        ({"response_format": FORM, "parallel_tool_calls": False}, SCHEMA, {"parallel": False}),
        ({"response_format": FORM, "tool_choice": "required"}, SCHEMA, {"required": True}),
        ({"response_format": FORM, "tool_choice": NAMED}, SCHEMA, {"required": True, "parallel": False}),
        ({"response_format": FORM, "tool_choice": allowed("auto", "now")}, SCHEMA, {}),
    ],
)
def test_every_form_and_choice_of_tools_is_one_grammar(
    gateway: Gateway, tokenizer: ChatTokenizer, options: dict[str, Any], form: Grammar, use: dict[str, Any]
) -> None:
    gateway.reply = call("{}", "now")
    choice = create(gateway, **options).choices[0]
    assert (calls_of(choice), choice.finish_reason) == ([("now", "{}")], "tool_calls")
    some = isinstance(options.get("tool_choice"), dict)
    parameters = {"now": PARAMETERS["now"]} if some else PARAMETERS
    expected = calls_or_form(form, ToolUse(parameters, **use), tokenizer)
    assert [request.sampling.grammar for request in gateway.requests] == [expected]


def test_with_no_tool_to_choose_the_form_stands_alone(gateway: Gateway) -> None:
    gateway.reply = BUSAN
    assert create(gateway, response_format=FORM, tool_choice="none", reasoning_effort="none").choices[0].message.content
    assert [request.sampling.grammar for request in gateway.requests] == [SCHEMA]


def test_beside_a_form_parameters_that_cannot_be_enforced_are_the_models_own(
    gateway: Gateway, tokenizer: ChatTokenizer
) -> None:
    gateway.reply = call('{"a": [1, 1]}', "f")
    tools = [tool(parameters={"properties": {"a": {"uniqueItems": True}}})]
    assert calls_of(create(gateway, tools=tools, response_format=FORM).choices[0]) == [("f", '{"a": [1, 1]}')]
    expected = calls_or_form(SCHEMA, ToolUse({"f": {"type": "object"}}), tokenizer)
    assert [request.sampling.grammar for request in gateway.requests] == [expected]


def test_past_calls_and_their_results_reach_the_model(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    gateway.reply = call(SEOUL) + call(BUSAN)
    message = create(gateway).choices[0].message
    first, second = message.tool_calls
    gateway.reply = "둘 다 맑습니다."
    results = [
        {"role": "tool", "tool_call_id": second.id, "content": "부산 맑음"},
        {"role": "tool", "tool_call_id": first.id, "content": [{"type": "text", "text": '{"서울": "맑음\\n"}'}]},
    ]
    answer = create(gateway, messages=[*MESSAGES, message.to_dict(), *results])
    assert answer.choices[0].message.content == "둘 다 맑습니다."
    prompt = tokenizer.backend.decode(list(gateway.requests[-1].prompt_token_ids), skip_special_tokens=False)
    past = r'{"도시": "서울 \"특별시\" 서</tool_call>", "단위": "섭씨"}'
    assert f"<|role_end|>\n{call(past)}\n{call(BUSAN)}<|END|>\n" in prompt
    assert (
        "<|role_start|>user<|role_end|>\n"
        '<tool_response>{"서울": "맑음\\n"}</tool_response>\n<tool_response>부산 맑음</tool_response>\n'
    ) in prompt


BAD_SCHEMA = {"type": "object", "properties": {"a": {"type": "strin"}}}


def tool(**function: Any) -> Any:
    return {"type": "function", "function": {"name": "f", **function}}


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "two functions are called f"),
        ({"tools": [tool(name="날씨")]}, "tools[0].function.name", "should match pattern"),
        ({"tools": [tool(name="a" * 65)]}, "tools[0].function.name", "should match pattern"),
        ({"tools": [tool(), {"type": "web"}]}, "tools[1].type", "only functions are taken as tools; this is web"),
        ({"tools": [tool(parameters=BAD_SCHEMA)]}, "tools[0].function.parameters", "at properties.a.type"),
        ({"tools": [tool(parameters={"$schema": "http://x/"})]}, "tools[0].function.parameters", "http://x/"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "dictionary"),
        ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [tool()], "tool_choice": NAMED}, "tool_choice", "no function called now"),
        ({"tools": [tool()], "tool_choice": allowed("auto", "g")}, "tool_choice", "no function called g"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tools": [tool()], "tool_choice": {"type": "web"}}, "tool_choice.type", "should be 'function'"),
        (
            {"tools": [tool(parameters={"$ref": "#/nowhere"})], "tool_choice": "required"},
            "tools[0].function.parameters",
            "a call of f cannot be held to its parameters",
        ),
        (
            {
                "tools": [tool(parameters={"uniqueItems": True}, strict=True)],
                "response_format": {"type": "json_object"},
            },
            "tools[0].function.parameters",
            "a call of f cannot be held to its parameters",
        ),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(gateway: Gateway, body: Any, param: str, told: str) -> None:
    response = gateway.post(**body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert told in error["message"]
    assert gateway.requests == []
