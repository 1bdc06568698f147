"""The form of an answer, in every spelling, through the real client over a real socket."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from support.running_gateway import MODEL, REASONING, Gateway
from trillion_serve.engines.protocol import GenerateRequest, Grammar

MESSAGES: Any = [{"role": "user", "content": "서울은?"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"도시": {"type": "string"}, "인구": {"type": "integer"}},
    "required": ["도시", "인구"],
}
ANSWER = '{"도시": "서울 \\"특별시\\"", "인구": 9}'
TEXT = json.dumps(SCHEMA, ensure_ascii=False)
JSON_SCHEMA = Grammar("json_schema", TEXT)
ANY_OBJECT = Grammar("json_schema", '{"type": "object"}')
EBNF = 'root ::= "예" | "아니오"'
WRAPPED = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}


class City(BaseModel):
    """What the client's helper parses."""

    도시: str
    인구: int


def thinking(request: GenerateRequest) -> str:
    """A model that thinks, and then writes JSON if it is held to it."""
    return ANSWER if request.sampling.grammar else f"{REASONING}\n</think>\n\n답"


SPELLINGS = [
    ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON_SCHEMA),
    ({"response_format": WRAPPED}, JSON_SCHEMA),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}}, ANY_OBJECT),
    ({"structured_outputs": {"json": SCHEMA}}, JSON_SCHEMA),
    ({"structured_outputs": {"json": TEXT}}, JSON_SCHEMA),
    ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
    ({"structured_outputs": {"regex": r"\d{2,3}"}}, Grammar("regex", r"\d{2,3}")),
    ({"structured_outputs": {"choice": ["예", "a.b|c"]}}, Grammar("regex", r"(예)|(a\.b\|c)")),
    ({"structured_outputs": {"grammar": EBNF}}, Grammar("ebnf", EBNF)),
    ({"guided_json": SCHEMA}, JSON_SCHEMA),
    ({"guided_json": TEXT}, JSON_SCHEMA),
    ({"guided_regex": "[가-힣]+"}, Grammar("regex", "[가-힣]+")),
    ({"guided_choice": ["예", "아니오"]}, Grammar("regex", "(예)|(아니오)")),
    ({"guided_grammar": EBNF}, Grammar("ebnf", EBNF)),
    ({"regex": "a+"}, Grammar("regex", "a+")),
    ({"ebnf": EBNF}, Grammar("ebnf", EBNF)),
    ({"json_schema": TEXT}, JSON_SCHEMA),
]


@pytest.mark.parametrize(("body", "grammar"), SPELLINGS)
def test_every_spelling_binds_after_the_reasoning(gateway: Gateway, body: Any, grammar: Grammar) -> None:
    gateway.reply = thinking
    message = gateway.post(**body).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (REASONING, ANSWER)
    assert [request.sampling.grammar for request in gateway.requests] == [None, grammar]


@pytest.mark.parametrize(("body", "grammar"), SPELLINGS[:1])
def test_without_thinking_it_binds_at_once(gateway: Gateway, body: Any, grammar: Grammar) -> None:
    gateway.reply = ANSWER
    assert gateway.post(reasoning_effort="none", **body).json()["choices"][0]["message"]["content"] == ANSWER
    assert [request.sampling.grammar for request in gateway.requests] == [grammar]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
    ],
)
def test_nothing_binds_where_no_form_is_asked_for(gateway: Gateway, body: Any) -> None:
    assert gateway.post(**body).status_code == 200
    assert [request.sampling.grammar for request in gateway.requests] == [None]


@pytest.mark.parametrize("gateway", [{"chunk": 1}, {"chunk": 1000}], indirect=True)
def test_the_clients_helpers_parse_it(gateway: Gateway) -> None:
    gateway.reply = thinking
    completions = gateway.client.chat.completions
    parsed = completions.parse(model=MODEL, messages=MESSAGES, response_format=City, n=2)
    assert [choice.message.parsed for choice in parsed.choices] == [City(도시='서울 "특별시"', 인구=9)] * 2
    with completions.stream(model=MODEL, messages=MESSAGES, response_format=City) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == City(도시='서울 "특별시"', 인구=9)
    assert streamed.choices[0].message.content == ANSWER


BAD: Any = {"type": "object", "properties": {"a": {"type": "strin"}}}


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD}}},
            "response_format.json_schema.schema",
            "at properties.a.type",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.name",
            "required",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'text', 'json_object' or 'json_schema'"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", "'text', 'json_object' or"),
        ({"guided_json": BAD}, "guided_json", "at properties.a.type"),
        ({"guided_json": "{"}, "guided_json", "no JSON"),
        ({"guided_json": "[1]"}, "guided_json", "is an object"),
        ({"structured_outputs": {"json": {"$ref": "#/x"}}}, "structured_outputs.json", "cannot be enforced"),
        ({"structured_outputs": {"json": {"$ref": "http://127.0.0.1:9/x"}}}, "structured_outputs.json", "not fetch"),
        ({"structured_outputs": {"json": {"uniqueItems": True}}}, "structured_outputs.json", "uniqueItems"),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs.regex", "unclosed group"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar", "'x' not found"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice[0]", "at least 1"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),
        ({"guided_regex": ""}, "guided_regex", "empty"),
        ({"guided_regex": "a" * 65_537}, "guided_regex", "65537 characters"),
        ({"guided_regex": "a", "json_schema": TEXT}, "guided_regex", "json_schema and guided_regex both say"),
        (
            {"structured_outputs": {"json": SCHEMA, "regex": "a"}},
            "structured_outputs.regex",
            "structured_outputs.json and structured_outputs.regex both say",
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["a"]}},
            "structured_outputs.choice",
            "response_format and structured_outputs.choice both say",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(gateway: Gateway, body: Any, param: str, told: str) -> None:
    for stream in (False, True):
        response = gateway.post(stream=stream, **body)
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert told in error["message"]
    assert gateway.requests == []
