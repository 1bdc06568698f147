"""Trillion-7B's chat template, as Transformers renders it, and the tokens that it is written in."""

import re

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from trillion_model.trillion import chat_format

USER = {"role": "user", "content": "안녕"}
TURN = "<|im_start|>user\n안녕<|im_end|>\n"
HEAD = "<|begin_of_text|>"
TOOL = {"type": "function", "function": {"name": "더하기", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "더하기", "arguments": {"a": 1}}}


def render(messages: list[dict], **variables) -> tuple[str, list[str]]:
    """The text, and the parts of it that a model learns to write."""
    (text,), (spans,) = render_jinja_template(
        [messages], chat_template=chat_format.chat_template(), return_assistant_tokens_mask=True, **variables
    )
    return text, [text[begin:end] for begin, end in spans]


def test_a_prompt_opens_the_answer():
    assert render([USER], add_generation_prompt=True) == (HEAD + TURN + "<|im_start|>assistant\n", [])


def test_an_answer_ends_with_the_end_token_which_is_learnt():
    text, learnt = render([USER, {"role": "assistant", "content": "네."}, USER])
    assert text == HEAD + TURN + "<|im_start|>assistant\n네.<|im_end|>\n" + TURN
    assert learnt == ["네." + chat_format.EOS]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_system_turn_comes_first_and_once(role):
    text, _ = render([{"role": role, "content": "짧게."}, USER])
    assert text == HEAD + "<|im_start|>system\n짧게.<|im_end|>\n" + TURN


def test_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "안"}, {"type": "text", "text": "녕"}]
    assert render([{"role": "user", "content": parts}])[0] == HEAD + "<|im_start|>user\n안\n녕<|im_end|>\n"


def test_tools_are_listed_called_and_answered():
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    text, learnt = render([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, *results], tools=[TOOL])
    assert text.startswith(HEAD + "<|im_start|>system\n# Tools\n")
    assert '{"name": "더하기", "parameters": {"type": "object"}}\n' in text
    assert learnt == ['<tool_call>{"name": "더하기", "arguments": {"a": 1}}</tool_call><|im_end|>']
    responses = "<tool_response>1</tool_response>\n<tool_response>2</tool_response>"
    assert text.endswith("<|im_end|>\n<|im_start|>user\n" + responses + "<|im_end|>\n")


def test_every_token_of_the_template_is_a_special_token():
    # Tags of Jinja's own, such as {%- macro -%}, have no angle brackets.
    written = set(re.findall(r"<[|/]?[a-z_]+\|?>", chat_format.chat_template()))
    assert written == set(chat_format.SPECIAL_TOKENS) - {chat_format.PAD}
