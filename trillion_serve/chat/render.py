"""Messages to prompt token ids.

Past reasoning never comes back into a prompt (VAETKI report, section 2.2), whichever way a client echoes it:
as ``reasoning``, as ``reasoning_content``, or between tags in the content.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
) -> Prompt:
    """Apply the chat template and tokenise.

    Args:
        tokenizer: the model's.
        messages: as the OpenAI chat API has them, contents as strings or lists of text parts.
        tools: function definitions, as the API has them.
        thinking: on or off; None leaves it to the template.
        template_variables: anything else for the template to read.

    Raises:
        RenderError: the template refuses these messages.
    """
    variables = {k: v for k, v in (template_variables or {}).items() if k not in _CONTROLLED}
    if thinking is not None:
        variables |= {"enable_thinking": thinking, "thinking": thinking}
    turns = [tokenizer.guard(_past_turn(message)) for message in messages]
    rendered = tokenizer.apply_template(turns, tokenizer.guard(list(tools)), **tokenizer.guard(variables))
    if thinking is False:
        rendered = close_thinking(rendered, model_thinks=tokenizer.model_thinks)
    return Prompt(token_ids=tuple(tokenizer.encode(rendered)), thinking=plan_of(rendered))


def answer_of(content: str) -> str:
    """The answer in an assistant's content that may still hold its reasoning between think tags.

    The opening tag may be missing, as it is when the prompt wrote it. An answer that merely speaks of the
    two tags, in that order, stays whole.
    """
    reasoning, tag, answer = content.partition(THINK_END)
    if tag and (THINK_START not in reasoning or reasoning.lstrip().startswith(THINK_START)):
        return answer.lstrip("\n")
    return content


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
        function["arguments"] = json.loads(function["arguments"])
    except (TypeError, json.JSONDecodeError):
        # Already parsed, or what a model wrote wrongly: the template prints either.
        return {**call, "function": function}
    return {**call, "function": function}
