"""Messages to prompt token ids.

Past reasoning never comes back into a prompt (VAETKI report, section 2.2), whichever way a client echoes it:
as ``reasoning``, as ``reasoning_content``, or between tags in the content.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from trillion_model.vaetki.chat_format import THINK_END, THINK_START
from trillion_serve.chat.thinking import ThinkingPlan, close_thinking, plan_of
from trillion_serve.chat.tokenizer import ChatTokenizer

_CONTROLLED = frozenset({"messages", "tools", "tokenize", "add_generation_prompt", "chat_template"})


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for an engine, and how to read what comes back."""

    token_ids: tuple[int, ...]
    thinking: ThinkingPlan


def render(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: bool | None = None,
    template_variables: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> Prompt:
    """Apply the chat template and tokenise.

    Args:
        tokenizer: the model's.
        messages: as the OpenAI chat API has them, contents as strings or lists of text parts. Results of tool calls
            are put in the order of the calls, as templates show no ids.
        tools: function definitions, as the API has them.
        thinking: on or off; None leaves it to the template.
        template_variables: anything else for the template to read.
        add_generation_prompt: render up to where the answer begins, rather than to the end of the last message.

    Raises:
        RenderError: the template refuses these messages.
    """
    variables = {k: v for k, v in (template_variables or {}).items() if k not in _CONTROLLED}
    if thinking is not None:
        variables |= {"enable_thinking": thinking, "thinking": thinking}
    turns = [tokenizer.guard(_past_turn(message)) for message in _in_order_of_calls(messages)]
    rendered = tokenizer.apply_template(
        turns, tokenizer.guard(list(tools)), add_generation_prompt=add_generation_prompt, **tokenizer.guard(variables)
    )
    if thinking is False and add_generation_prompt:
        rendered = close_thinking(rendered, model_thinks=tokenizer.model_thinks)
    return Prompt(token_ids=tuple(tokenizer.encode(rendered)), thinking=plan_of(rendered))


def answer_of(content: str) -> str:
    """The answer in an assistant's content that may still hold its reasoning between think tags.

    The opening tag may be missing, as it is when the prompt wrote it, or the closing one, when the tokens ran out
    before the answer. An answer that merely speaks of the two tags, in that order, stays whole.
    """
    reasoning, tag, answer = content.partition(THINK_END)
    opened = reasoning.lstrip().startswith(THINK_START)
    if not tag:
        return "" if opened else content
    return answer.lstrip("\n") if opened or THINK_START not in reasoning else content


def _in_order_of_calls(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The messages, in every run of tool results those first whose calls came first; unknown ids come last."""
    places: dict[str, int] = {}
    for is_tool, run in groupby(messages, key=lambda message: message["role"] == "tool"):
        turns = list(run)
        if is_tool:
            turns.sort(key=lambda turn: places.get(turn.get("tool_call_id") or "", len(places)))
        else:
            calls = turns[-1].get("tool_calls") or ()
            places = {call["id"]: place for place, call in enumerate(calls) if call.get("id")}
        yield from turns


def _past_turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: content one string, call arguments parsed, reasoning gone."""
    turn = {k: v for k, v in message.items() if k not in ("reasoning", "reasoning_content")}
    content = message.get("content")
    if not isinstance(content, str):
        content = "\n".join(part["text"] for part in content or ())
    turn["content"] = answer_of(content) if message["role"] == "assistant" else content
    if message.get("tool_calls"):
        turn["tool_calls"] = [_parsed_call(call) for call in message["tool_calls"]]
    return turn


def _parsed_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    try:
        arguments = json.loads(function["arguments"])
        json.dumps(arguments, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        # Already parsed, or what a model wrote wrongly: the template prints either.
        return {**call, "function": function}
    return {**call, "function": {**function, "arguments": arguments}}
