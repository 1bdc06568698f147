"""Our parsers in vLLM: reasoning between think tags, calls between tool tags, whole and in pieces."""

import json

import pytest
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager

from trillion_serve.plugins.vllm import register

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
Read = tuple[str, str, list[tuple[str, str]]]
"""Reasoning, answer, and calls by name and arguments."""


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    register()
    return AutoTokenizer.from_pretrained(tokenizer_dir)


class Chat:
    """A request to vLLM's chat endpoint, and how it reads answers to it."""

    def __init__(self, tokenizer, tools: list[dict] | None, **switches) -> None:
        self.tokenizer, self.switches = tokenizer, switches
        messages = [{"role": "user", "content": "1 + 2?"}]
        self.request = ChatCompletionRequest(model="m", messages=messages, tools=tools, chat_template_kwargs=switches)
        prompt = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False, **switches
        )
        self.prompt = tokenizer.encode(prompt, add_special_tokens=False)
        self.parser_class = ParserManager.get_parser("vaetki", "vaetki", enable_auto_tools=True, tokenizer=tokenizer)

    def parser(self):
        parser = self.parser_class(self.tokenizer, self.request.tools, chat_template_kwargs=self.switches)
        parser.adjust_request(self.request)
        assert not self.request.skip_special_tokens
        return parser

    def whole(self, text: str) -> Read:
        reasoning, answer, calls = self.parser().parse(text, self.request, enable_auto_tools=True)
        return reasoning or "", answer or "", [(call.name, call.arguments) for call in calls or ()]

    def streamed(self, text: str) -> Read:
        """A token at a time."""
        parser, reasoning, answer, calls = self.parser(), "", "", {}
        ids, stream = self.tokenizer.encode(text, add_special_tokens=False), DecodeStream(skip_special_tokens=False)
        for n, token in enumerate(ids, start=1):
            piece = stream.step(self.tokenizer.backend_tokenizer, token) or ""
            delta = parser.parse_delta(piece, [token], self.request, self.prompt, finished=n == len(ids))
            if delta is None:
                continue
            reasoning, answer = reasoning + (delta.reasoning or ""), answer + (delta.content or "")
            for call in delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                calls[call.index] = name + (call.function.name or ""), arguments + (call.function.arguments or "")
        return reasoning, answer, list(calls.values())


@pytest.mark.parametrize(
    ("switches", "text", "expected"),
    [
        ({}, "생각</think>답", ("생각", "답", [])),
        ({}, "<think>생각</think>답", ("생각", "답", [])),
        ({}, "끝나지 않은 생각", ("끝나지 않은 생각", "", [])),
        ({"enable_thinking": True}, "생각</think>답", ("생각", "답", [])),
        ({"enable_thinking": False}, "답", ("", "답", [])),
        ({"thinking": False}, "답", ("", "답", [])),
    ],
)
def test_reasoning_is_told_from_the_answer(tokenizer, switches, text, expected):
    chat = Chat(tokenizer, None, **switches)
    assert chat.whole(text) == chat.streamed(text) == expected


@pytest.mark.parametrize(
    ("text", "answer", "calls"), [("답", "답", 0), (CALL, "", 1), (f"먼저.{CALL}\n{CALL}", "먼저.", 2)]
)
def test_with_tools_the_answer_begins_at_once_and_calls_are_taken_out_of_it(tokenizer, text, answer, calls):
    chat = Chat(tokenizer, [ADD])
    for read in (chat.whole(text), chat.streamed(text)):
        assert read[:2] == ("", answer)
        assert [(name, json.loads(arguments)) for name, arguments in read[2]] == [("add", {"a": 1, "b": 2})] * calls
