"""Our own chat template, as Transformers applies it (VAETKI report, section 2.2)."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

USER = {"role": "user", "content": "안녕"}
TOOL = {"type": "function", "function": {"name": "더하기", "parameters": {"type": "object"}}}
HEAD = "<|START|><|role_start|>user<|role_end|>\n안녕\n"
ASSISTANT = "<|role_start|>assistant<|role_end|>\n"


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], **variables: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **variables)


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": True}, {"thinking": True}, {"thinking": None}])
def test_the_prompt_opens_a_think_block_by_default(reference: PreTrainedTokenizerFast, variables: dict) -> None:
    prompt = rendered(reference, [USER], add_generation_prompt=True, **variables)
    assert prompt == HEAD + ASSISTANT + "<think>\n"


@pytest.mark.parametrize("variables", [{"enable_thinking": False}, {"thinking": False}])
def test_without_thinking_the_prompt_closes_the_block_at_once(
    reference: PreTrainedTokenizerFast, variables: dict
) -> None:
    prompt = rendered(reference, [USER], add_generation_prompt=True, **variables)
    assert prompt == HEAD + ASSISTANT + "<think>\n\n</think>\n\n"


def test_tools_leave_no_thinking_and_are_listed_in_the_system_turn(reference: PreTrainedTokenizerFast) -> None:
    system = {"role": "system", "content": "짧게 답하세요."}
    prompt = rendered(reference, [system, USER], tools=[TOOL], add_generation_prompt=True)
    assert prompt.startswith("<|START|><|role_start|>system<|role_end|>\n짧게 답하세요.\n\n# Tools\n")
    assert '{"name": "더하기", "parameters": {"type": "object"}}\n' in prompt
    assert prompt.endswith(ASSISTANT + "<think>\n\n</think>\n\n")
    assert prompt.count("<|role_start|>system<|role_end|>") == 1


@pytest.mark.parametrize(
    "echoed",
    [
        {"content": "답", "reasoning": "생각"},
        {"content": "답", "reasoning_content": "생각"},
        {"content": "<think>\n생각\n</think>\n\n답"},
        {"content": "생각\n</think>\n\n답"},
    ],
)
def test_past_turns_keep_only_the_answer(reference: PreTrainedTokenizerFast, echoed: dict) -> None:
    messages = [USER, {"role": "assistant", **echoed}, USER]
    turn = "<|role_start|>user<|role_end|>\n안녕\n"
    assert rendered(reference, messages) == HEAD + ASSISTANT + "답<|END|>\n" + turn


@pytest.mark.parametrize(
    "target",
    [
        {"content": "답", "reasoning": "생각"},
        {"content": "답", "reasoning_content": "\n생각\n"},
        {"content": "<think>\n생각\n</think>\n\n답"},
    ],
)
def test_the_last_turn_is_a_whole_training_target(reference: PreTrainedTokenizerFast, target: dict) -> None:
    messages = [USER, {"role": "assistant", **target}]
    assert rendered(reference, messages) == HEAD + ASSISTANT + "<think>\n생각\n</think>\n\n답<|END|>\n"


def test_a_target_continues_the_generation_prompt(reference: PreTrainedTokenizerFast) -> None:
    for target, thinking in [({"content": "답", "reasoning": "생각"}, True), ({"content": "답"}, False)]:
        prompt = rendered(reference, [USER], add_generation_prompt=True, enable_thinking=thinking)
        assert rendered(reference, [USER, {"role": "assistant", **target}]).startswith(prompt)


def test_the_mask_covers_what_the_assistant_writes_and_nothing_else(reference: PreTrainedTokenizerFast) -> None:
    messages = [
        USER,
        {"role": "assistant", "content": "하나", "reasoning": "옛 생각"},
        USER,
        {"role": "assistant", "content": "둘", "reasoning": "새 생각"},
    ]
    encoded = reference.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    written = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert reference.decode(written) == "하나<|END|>새 생각\n</think>\n\n둘<|END|>"


def test_an_answer_that_speaks_of_the_tags_stays_whole(reference: PreTrainedTokenizerFast) -> None:
    answer = "the <think> and </think> tags"
    messages = [USER, {"role": "assistant", "content": answer}, USER]
    assert answer + "<|END|>" in rendered(reference, messages)


def test_tool_calls_and_their_results(reference: PreTrainedTokenizerFast) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "더하기", "arguments": '{"a": 1}'}}
    parsed = {"id": "2", "type": "function", "function": {"name": "더하기", "arguments": {"a": '"둘"'}}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, parsed]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "4"}]},
    ]
    assert rendered(reference, messages) == (
        HEAD
        + ASSISTANT
        + '<tool_call>{"name": "더하기", "arguments": {"a": 1}}</tool_call>\n'
        + '<tool_call>{"name": "더하기", "arguments": {"a": "\\"둘\\""}}</tool_call><|END|>\n'
        + "<|role_start|>user<|role_end|>\n<tool_response>3</tool_response>\n<tool_response>4</tool_response>\n"
    )


def test_text_parts_are_lines(reference: PreTrainedTokenizerFast) -> None:
    parts = [{"type": "text", "text": "가"}, {"type": "text", "text": "나"}]
    assert "\n가\n나\n" in rendered(reference, [{"role": "user", "content": parts}])
