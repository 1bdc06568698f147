"""Our gateway in front of a real SGLang server: chat, thinking budgets, JSON, log-probabilities, scoring."""

import json
import subprocess
import sys
from collections.abc import Iterator

import jsonschema
import pytest
from openai import OpenAI

from support.sglang_server import SglangServer
from trillion_serve.chat.tokenizer import ChatTokenizer

pytestmark = pytest.mark.engine

SCHEMA = {"type": "object", "properties": {"수": {"enum": [1, 2]}}, "required": ["수"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def client(serving, tokenizer_dir) -> Iterator[OpenAI]:
    """A client of ``trillion-serve serve`` before the server."""
    server: SglangServer = serving("vaetki")
    command = [sys.executable, "-m", "trillion_serve.cli.main", "serve", str(tokenizer_dir), "--engine", "http"]
    arguments = ["--url", f"sglang={server.url}", "--served-model-name", "chat", "--port", "0"]
    gateway = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(gateway.stdout.readline, "")
        url = next(line.split(" at ")[1].strip() for line in lines if line.startswith("Serving chat"))
        yield OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        gateway.terminate()
        assert gateway.wait(20) == 0
    finally:
        gateway.kill()
        gateway.wait()


def ask(client: OpenAI, **fields):
    asked = {"model": "chat", "messages": [{"role": "user", "content": "둘은?"}], "max_tokens": 32, "temperature": 0}
    return client.chat.completions.create(**asked | fields)


def test_an_answer_streams_as_it_is_told_whole(client):
    answer = ask(client)
    chunks = list(ask(client, stream=True))
    assert answer.choices[0].message.content
    assert 1 <= answer.usage.completion_tokens <= 32
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert told == answer.choices[0].message.content


def test_a_thinking_budget_holds(client):
    answer = ask(client, max_tokens=64, extra_body={"thinking": {"type": "enabled", "budget_tokens": 8}})
    assert answer.choices[0].message.reasoning
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens_details.reasoning_tokens <= 40  # with the sentence that closes it


def test_json_keeps_to_its_schema_after_the_reasoning(client):
    answer = ask(client, max_tokens=96, response_format=FORM, extra_body={"thinking_token_budget": 8})
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


@pytest.mark.parametrize(("bias", "finish"), [(100, "tool_calls"), (-100, "stop")])
def test_beside_a_schema_the_model_calls_or_answers_in_json(client, tokenizer_dir, bias, finish):
    tag = ChatTokenizer.load(str(tokenizer_dir)).encode("<tool_call>")[0]
    answer = ask(
        client,
        max_tokens=96,
        temperature=1.0,
        tools=[{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        parallel_tool_calls=False,
        response_format=FORM,
        logit_bias={str(tag): bias},
    )
    (choice,) = answer.choices
    assert choice.finish_reason == finish
    texts = [call.function.arguments for call in choice.message.tool_calls or ()] or [choice.message.content]
    jsonschema.validate(json.loads(texts[0]), SCHEMA)


def test_log_probabilities_come_with_the_tokens(client):
    answer = ask(client, logprobs=True, top_logprobs=2, extra_body={"reasoning_effort": "none"})
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries)


def test_a_prompt_is_scored(client):
    completion = client.completions.create(
        model="chat", prompt="오늘 날씨가 좋습니다.", max_tokens=0, echo=True, logprobs=1
    )
    told = completion.choices[0].logprobs
    assert told.token_logprobs[0] is None
    assert len(told.token_logprobs) > 2
    assert all(logprob < 0 for logprob in told.token_logprobs[1:])


def test_a_request_that_is_left_leaves_the_server_free(client):
    stream = ask(client, max_tokens=300, temperature=1.0, stream=True)
    next(iter(stream))
    stream.close()
    assert ask(client).choices[0].message.content
