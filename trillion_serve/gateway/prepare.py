"""From what a request says, in whichever API, to the answer that is to be generated."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from trillion_serve.chat.answer import AnswerLimits, AnswerRequest, Constrained, Free, Segment, reasoning_room
from trillion_serve.chat.language import language_of
from trillion_serve.chat.render import Prompt, render
from trillion_serve.chat.structure import call_grammar, calls_or_form
from trillion_serve.chat.thinking import Opening, ThinkingWish
from trillion_serve.chat.tools import ToolUse
from trillion_serve.engines.protocol import Grammar, SamplingParams
from trillion_serve.gateway.models import ServedModel
from trillion_serve.gateway.sampling import check_ids, sampling_of
from trillion_serve.gateway.schema.grammar_check import refusal_of
from trillion_serve.gateway.schema.sampling import SamplingFields

_NOTHING_ASKED = ThinkingWish()
_LEAST_REASONING = 8
"""Fewer tokens of reasoning than these help no answer, which can use them itself."""
_SHORT_CHARACTERS = 1500
_ANYTHING: tuple[Segment, ...] = (Free(),)
_ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object"}


async def prepare_answer(
    model: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    *,
    answer_id: str,
    sampling: SamplingFields,
    wish: ThinkingWish = _NOTHING_ASKED,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_use: ToolUse | None = None,
    content: tuple[Segment, ...] = _ANYTHING,
    template_variables: Mapping[str, Any] | None = None,
    top_logprobs: int | None = None,
    param: str = "messages",
) -> AnswerRequest:
    """Render a conversation and say how to answer it.

    Args:
        model: what answers.
        messages: as the OpenAI chat API has them, as plain mappings.
        answer_id: unique among the answers under way.
        sampling: the sampling fields that the request gave.
        wish: what it asks of thinking.
        tools: function definitions that the model is told of, as the chat API has them.
        tool_use: the calls that are read out of the content.
        content: the parts that the content is made of; a form that is all of it becomes calls or that form with tools.
        template_variables: anything else for the chat template.
        top_logprobs: alternatives to each token, None for no log-probabilities.
        param: the field that the messages come from, for errors.

    Raises:
        RenderError: the chat template refuses the messages.
        ApiError: they do not fit in the context, or a token is named that there is not.
    """
    if sampling.stop_token_ids or sampling.logit_bias:
        await asyncio.to_thread(check_ids, model.tokenizer, sampling)
    match content:
        case (Constrained(form),) if tool_use is not None:
            tool_use = replace(tool_use, or_form=True)
            content = (Constrained(await asyncio.to_thread(_calls_or_form, model, form, tool_use)),)
    variables = variables_of(wish, template_variables)
    short = not tools and sum(_length(message) for message in messages) <= _SHORT_CHARACTERS

    async def rendered(thinking: bool | None) -> Prompt:
        work = partial(render, model.tokenizer, messages, tools=tools, thinking=thinking, template_variables=variables)
        # A long prompt would hold up every other request; a short one is done before a thread would begin.
        return work() if short else await asyncio.to_thread(work)

    def sized(prompt: Prompt) -> SamplingParams:
        return sampling_of(
            sampling,
            model.sampling,
            model.engine.info,
            prompt_tokens=len(prompt.token_ids),
            end_ids=model.tokenizer.end_ids,
            top_logprobs=top_logprobs,
            param=param,
        )

    prompt = await rendered(model.thinking.thinks(wish))
    params = sized(prompt)
    limits = _limits(model, messages, wish, params)
    room = reasoning_room(model.tokenizer, limits, params.max_tokens)
    if prompt.thinking.opening is not Opening.CLOSED and room < _LEAST_REASONING:
        prompt = await rendered(False)
        # This prompt is a little longer.
        left = model.engine.info.context_length - len(prompt.token_ids)
        params = replace(params, max_tokens=min(params.max_tokens, left)) if left > 0 else sized(prompt)
    return AnswerRequest(
        answer_id,
        prompt,
        params,
        stop=tuple(sampling.stop or ()),
        limits=limits,
        view=wish.view,
        content=content,
        tools=tool_use,
    )


def variables_of(wish: ThinkingWish, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the chat template can read of a request: the variables that it gave, and how hard to think."""
    variables = dict(given or {})
    if wish.effort is not None and wish.on is not False:
        variables.setdefault("reasoning_effort", wish.effort)
    return variables


def _calls_or_form(model: ServedModel, form: Grammar, use: ToolUse) -> Grammar:
    """A grammar of calls, or else of a form. Parameters that cannot be enforced are left to the model."""
    parameters = {
        name: schema if refusal_of(call_grammar({name: schema})) is None else _ANY_ARGUMENTS
        for name, schema in use.parameters.items()
    }
    return calls_or_form(form, replace(use, parameters=parameters), model.tokenizer)


def _limits(
    model: ServedModel, messages: Sequence[Mapping[str, Any]], wish: ThinkingWish, params: SamplingParams
) -> AnswerLimits:
    settings = model.thinking
    limits = AnswerLimits(
        budget=settings.budget_for(wish),
        reserve=settings.reserved(params.max_tokens),
        transition=settings.transition(language_of(_last_user_text(messages))),
        reasoning_loops=settings.reasoning_loops if wish.loops else None,
        content_loops=settings.content_loops if wish.loops else None,
    )
    # Where a sentence would take the place of much of the reasoning, the closing tag alone will do.
    scarce = reasoning_room(model.tokenizer, limits, params.max_tokens) < params.max_tokens // 2
    return replace(limits, transition="") if scarce else limits


def _length(message: Mapping[str, Any]) -> int:
    """Characters of a message, and some for what stands around them."""
    return 32 + len(str(message.get("content") or "")) + len(str(message.get("tool_calls") or ""))


def _last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    content = next((turn.get("content") for turn in reversed(messages) if turn["role"] == "user"), None)
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or ())
