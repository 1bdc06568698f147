"""Grammars that would take minutes and gigabytes to see through are refused, and nobody waits for them."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from support.running_gateway import Gateway
from trillion_serve.engines.protocol import Grammar
from trillion_serve.errors import OverloadedError
from trillion_serve.gateway.schema import grammar_check
from trillion_serve.gateway.schema.grammar_check import MustWait, refusal_of

MANY_AUTOMATA = {"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}b.*"} for n in range(30)]}
MANY_ITEMS = {"type": "array", "maxItems": 1_000_000, "items": {"type": "integer"}}


@pytest.mark.parametrize("schema", [MANY_AUTOMATA, MANY_ITEMS])
def test_a_costly_schema_is_a_400_and_others_are_served_meanwhile(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any]
) -> None:
    refusal_of(Grammar("regex", "a"))  # the process is up
    monkeypatch.setattr(grammar_check, "SECONDS", 1.0)
    with ThreadPoolExecutor(1) as pool:
        costly = pool.submit(gateway.post, guided_json=schema)
        asked = 0
        while not costly.done():
            assert httpx.get(gateway.url.replace("/v1", "/health"), timeout=5).status_code == 200
            asked += 1
        assert asked > 4, "held for the check, the loop would have answered once"
        error = costly.result().json()["error"]
    assert (costly.result().status_code, error["param"]) == (400, "guided_json")
    assert "make it simpler" in error["message"]
    assert gateway.post(guided_json={"type": "integer"}).status_code == 200, "the next schema finds a process again"


def test_the_event_loop_is_never_held_for_a_check() -> None:
    unknown = Grammar("json_schema", json.dumps({"const": time.time()}))

    async def on_the_loop() -> str | None:
        return refusal_of(unknown)

    with pytest.raises(MustWait):
        asyncio.run(on_the_loop())
    assert refusal_of(unknown) is None
    assert asyncio.run(on_the_loop()) is None, "what is known is told at once"


def test_a_check_that_had_no_time_is_not_held_against_the_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    costly = Grammar("json_schema", json.dumps(MANY_AUTOMATA | {"title": "another"}))
    monkeypatch.setattr(grammar_check, "SECONDS", 60.0)
    monkeypatch.setattr(grammar_check, "_PATIENCE", 0.5 / 60)
    with pytest.raises(OverloadedError, match="try again"):
        refusal_of(costly)
    monkeypatch.setattr(grammar_check, "SECONDS", 0.5)
    monkeypatch.setattr(grammar_check, "_PATIENCE", 60.0)
    assert refusal_of(costly) == "it takes more than 0.5 s to check; make it simpler", "it was checked once more"


def test_many_threads_may_ask_at_once() -> None:
    """More grammars than are remembered, each asked for twice, so that some are forgotten in between."""
    count = grammar_check._KNOWN + 40
    asked = [Grammar("regex", f"a{{{number % count}}}") for number in range(2 * count)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(refusal_of, asked)) == [None] * len(asked)
    assert len(grammar_check._known) == grammar_check._KNOWN


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        (Grammar("json_schema", '{"type": "object"}'), None),
        (Grammar("json_schema", '{"uniqueItems": true}'), "uniqueItems"),
        (Grammar("regex", "가|나"), None),
        (Grammar("regex", "a("), "unclosed group"),
        (Grammar("ebnf", 'root ::= "가"'), None),
        (Grammar("ebnf", "root ::= x"), "'x' not found"),
    ],
)
def test_what_is_wrong_is_told(grammar: Grammar, told: str | None) -> None:
    problem = refusal_of(grammar)
    assert problem is None if told is None else problem is not None and told in problem
