"""SGLang's own endpoints with our model, template and reasoning parser."""

import json

import httpx
import pytest
from openai import OpenAI
from openai.types.chat.chat_completion_message_function_tool_call import Function

from support.sglang_parity import random_prompts

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server(serving):
    return serving("vaetki")


@pytest.fixture(scope="module")
def client(server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: OpenAI, **fields):
    asked = {"model": "default", "messages": [{"role": "user", "content": "둘은?"}], "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**asked | fields)


def test_generate_takes_token_ids(server):
    (prompt,) = random_prompts([20])
    body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 5, "temperature": 0, "ignore_eos": True}}
    told = httpx.post(f"{server.url}/generate", json=body, timeout=60).json()
    assert told["output_ids"] == server.generate([prompt], 5)[0].tokens
    assert told["meta_info"]["prompt_tokens"] == 20


@pytest.mark.parametrize("unknown", [512, -1])
def test_a_prompt_with_an_unknown_token_is_refused_and_the_server_goes_on(server, unknown):
    body = {"input_ids": [5, unknown, 6], "sampling_params": {"max_new_tokens": 1}}
    refusal = httpx.post(f"{server.url}/generate", json=body, timeout=60)
    assert refusal.status_code == 400
    assert f"token id {unknown} is out of vocabulary: the model knows 0 to 511" in refusal.text
    assert server.generate([[5, 6]], 1)[0].tokens


def test_thinking_that_is_cut_off_is_all_reasoning(client):
    message = ask(client).choices[0].message
    assert message.reasoning_content
    assert not message.content


def test_without_thinking_all_is_answer(client):
    message = ask(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).choices[0].message
    assert message.content
    assert not getattr(message, "reasoning_content", None)


ADD = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": ADD}}]


def streamed(chunks) -> list[Function]:
    """The calls of a stream, whole."""
    calls: dict[int, Function] = {}
    for part in (part for chunk in chunks if chunk.choices for part in chunk.choices[0].delta.tool_calls or ()):
        call = calls.setdefault(part.index, Function(name="", arguments=""))
        call.name += part.function.name or ""
        call.arguments += part.function.arguments or ""
    return list(calls.values())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_that_must_come_comes(client, choice, stream):
    answer = ask(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=80, stream=stream)
    calls = streamed(answer) if stream else [call.function for call in answer.choices[0].message.tool_calls]
    assert {call.name for call in calls} == {"add"}
    assert all(json.loads(call.arguments) in [{"a": a, "b": b} for a in (1, 2) for b in (3, 4)] for call in calls)


def test_a_call_in_the_models_own_form_is_taken_out_of_the_answer(client):
    spelled = r'ok<tool_call>\n\{"name": "add", "arguments": \{"a": 1, "b": [34]\}\}\n</tool_call>'
    choice = ask(client, tools=TOOLS, max_tokens=100, extra_body={"regex": spelled}).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "ok"
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)["a"]) == ("add", 1)
