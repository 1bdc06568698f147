"""Whatever a client sends, the gateway keeps to its own OpenAPI document: schemathesis makes the requests."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.running_gateway import Gateway

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
EXAMPLES = 30
STREAMS = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}


def test_every_answer_is_what_the_document_says(gateway: Gateway) -> None:
    document = schemathesis.openapi.from_url(gateway.url.removesuffix("/v1") + "/openapi.json")
    asked: dict[str, int] = {}
    for found in document.get_all_operations():
        operation = found.ok()
        ask_often(operation, asked)
    assert {name.split()[1] for name in asked} >= STREAMS
    assert min(asked.values()) >= 1
    print(f"{sum(asked.values())} requests over {len(asked)} operations")


def ask_often(operation: Any, asked: dict[str, int]) -> None:
    """Send what schemathesis makes for one operation, right and wrong."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        asked[operation.label] = asked.get(operation.label, 0) + 1
        answer = case.call(timeout=30)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400 and answer.headers["content-type"] == ["application/json"]:
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"] and error["type"]

    ask()
