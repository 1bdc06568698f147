"""Grammars and tool calls that must come, on a vLLM that really runs a tiny VAETKI with random weights.

Nothing but the grammar can make such a model write JSON.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from transformers import AutoTokenizer

import trillion_model
from support.tiny_vaetki import tiny_model
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.vllm import VllmEngine, VllmOptions
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.server import Server, listen, url_of

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
TIMES = 12
SCHEMA = {
    "type": "object",
    "properties": {
        "도시": {"enum": ["서울", "부산", '대구 "광역시"']},
        "인구": {"type": "integer", "minimum": 0, "maximum": 9999},
        "이름": {"type": "string", "maxLength": 6},
        "표": {"type": "array", "items": {"$ref": "#/$defs/표"}, "maxItems": 3},
    },
    "required": ["도시", "인구", "이름", "표"],
    "additionalProperties": False,
    "$defs": {"표": {"type": "boolean"}},
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {**SCHEMA, "required": required}}}
    for name, required in (("city", ["도시", "표"]), ("count", ["인구"]))
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> AsyncIterator[AsyncOpenAI]:
    """A client of a gateway over that engine."""
    directory = tmp_path_factory.mktemp("vaetki")
    trillion_model.register()
    tiny_model(vocab_size=512, eos_token_id=3, max_position_embeddings=4096).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(directory)
    engine = await VllmEngine.start(
        VllmOptions(str(directory), dtype="float32", kv_cache_memory=0.25, max_num_batched_tokens=256, max_num_seqs=8)
    )
    sock, up = listen("127.0.0.1", 0), asyncio.Event()
    models = Models([ServedModel("tiny", engine, ChatTokenizer.load(str(directory)))])
    server = Server(create_app(models), shutdown_timeout=5, on_ready=up.set)
    handlers = asyncio.create_task(server.serve(sockets=[sock]))
    await up.wait()
    yield AsyncOpenAI(base_url=url_of(sock), api_key="none", max_retries=0)
    server.should_exit = True
    await handlers
    await engine.close()


async def ask(client: AsyncOpenAI, question: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return (await client.chat.completions.create(model="tiny", messages=messages, temperature=1, **options)).choices


Answer = tuple[str, list[tuple[str, str]], str]
"""Content, calls (name and arguments), and why it ended."""


async def read(client: AsyncOpenAI, question: str, **options: Any) -> Answer:
    """An answer that comes whole."""
    (choice,) = await ask(client, question, **options)
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return choice.message.content or "", calls, choice.finish_reason


async def read_stream(client: AsyncOpenAI, question: str, **options: Any) -> Answer:
    """An answer that is streamed."""
    messages: Any = [{"role": "user", "content": question}]
    content, calls, finish = "", {}, ""
    stream = await client.chat.completions.create(
        model="tiny", messages=messages, temperature=1, stream=True, **options
    )
    async for chunk in stream:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for piece in choice.delta.tool_calls or ():
            name, arguments = calls.get(piece.index, (piece.function.name, ""))
            calls[piece.index] = (name, arguments + (piece.function.arguments or ""))
    return content, list(calls.values()), finish


async def test_a_schema_holds_after_the_reasoning(client: AsyncOpenAI) -> None:
    budget = {"thinking_token_budget": 12}
    asked = [
        ask(client, f"{index}번 도시는?", response_format=FORM, max_tokens=400, extra_body=budget)
        for index in range(TIMES)
    ]
    for choices in await asyncio.gather(*asked):
        assert choices[0].finish_reason == "stop"
        assert choices[0].message.reasoning
        jsonschema.validate(json.loads(choices[0].message.content), SCHEMA)


async def test_choices_and_regular_expressions_hold_to_the_letter(client: AsyncOpenAI) -> None:
    choices = ["예.", "아니오 (no)", "모름|무"]
    for choice in await ask(client, "예?", n=6, extra_body={"guided_choice": choices, "thinking_token_budget": 4}):
        assert choice.message.content in choices
    regex = {"structured_outputs": {"regex": r"[가-힣]{2,4}-[0-9]{3}"}, "reasoning_effort": "none"}
    for choice in await ask(client, "번호?", n=6, extra_body=regex):
        assert choice.message.content[-4] == "-" and choice.message.content[-3:].isdigit()


@pytest.mark.parametrize(
    ("tool_choice", "names"),
    [("required", {"city", "count"}), ({"type": "function", "function": {"name": "count"}}, {"count"})],
)
async def test_a_call_that_must_come_fits_its_parameters(
    client: AsyncOpenAI, tool_choice: Any, names: set[str]
) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    asked = [
        ask(client, f"{index}번?", tools=TOOLS, tool_choice=tool_choice, parallel_tool_calls=False, max_tokens=400)
        for index in range(TIMES)
    ]
    for (choice,) in await asyncio.gather(*asked):
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls
        assert call.function.name in names
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


@pytest.mark.parametrize(
    ("bias", "outcomes", "asking"),
    [
        ({}, {"tool_calls", "stop"}, read),
        ({"<tool_call>": 100}, {"tool_calls"}, read_stream),
        ({"<tool_call>": -100}, {"stop"}, read_stream),
    ],
)
async def test_beside_a_form_an_answer_is_a_call_that_fits_or_has_the_form(
    client: AsyncOpenAI, tokenizer: ChatTokenizer, bias: dict[str, int], outcomes: set[str], asking: Any
) -> None:
    """Which of them is the model's choice; a bias makes it."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    logit_bias = {str(tokenizer.encode(tag)[0]): value for tag, value in bias.items()}
    options = {"response_format": FORM, "parallel_tool_calls": False, "logit_bias": logit_bias, "max_tokens": 400}
    asked = [asking(client, f"{index}번?", tools=TOOLS, **options) for index in range(TIMES // 2)]
    for content, calls, finish in await asyncio.gather(*asked):
        assert finish in outcomes
        if finish == "tool_calls":
            ((name, arguments),) = calls
            assert content == ""
            jsonschema.validate(json.loads(arguments), schemas[name])
        else:
            assert not calls
            jsonschema.validate(json.loads(content), SCHEMA)


async def test_all_of_several_calls_beside_a_form_fit(client: AsyncOpenAI, tokenizer: ChatTokenizer) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    bias = {str(tokenizer.encode("<tool_call>")[0]): 100}  # which calls again until no token is left
    for choice in await ask(client, "모두?", tools=TOOLS, response_format=FORM, logit_bias=bias, max_tokens=300, n=2):
        assert choice.finish_reason == "length"
        # The last call is cut off; before its name is there, that is text.
        whole = choice.message.tool_calls if choice.message.content else choice.message.tool_calls[:-1]
        assert whole
        for call in whole:
            jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


async def test_the_first_of_several_calls_fits_and_what_follows_is_read(client: AsyncOpenAI) -> None:
    for choice in await ask(client, "모두?", tools=TOOLS, tool_choice="required", max_tokens=300, n=4):
        schema = next(
            t["function"]["parameters"]
            for t in TOOLS
            if t["function"]["name"] == choice.message.tool_calls[0].function.name
        )
        jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), schema)
