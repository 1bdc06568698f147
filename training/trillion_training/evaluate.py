"""Asks a model held-out problems, in batches, greedily, and checks every answer exactly."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch

from trillion_model.vaetki import chat_format
from trillion_training.answers import Answer, check
from trillion_training.data.jsonl import ProblemRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ask(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: Sequence[ProblemRecord],
    *,
    thinking: bool = True,
    max_new_tokens: int = 96,
    batch_size: int = 64,
) -> Iterator[Answer]:
    """Ask every problem and check the answers; they come in the order of the lengths of the questions.

    Args:
        model: a causal language model; put into evaluation mode.
        tokenizer: with a chat template.
        problems: what to ask.
        thinking: whether the model reasons first.
        max_new_tokens: longest answer, reasoning included.
        batch_size: problems answered at once.
    """
    model.eval()
    prompts = [
        tokenizer.apply_chat_template(
            [problem.messages[0].model_dump(include={"role", "content"})],
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=False,
        )
        for problem in problems
    ]
    order = iter(sorted(range(len(problems)), key=lambda i: len(prompts[i])))
    while batch := list(islice(order, batch_size)):
        texts = _generate(model, tokenizer, [prompts[i] for i in batch], max_new_tokens)
        for i, text in zip(batch, texts, strict=True):
            yield _answer(problems[i], text, thinking)


def _generate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: list[list[int]], max_new_tokens: int
) -> list[str]:
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
    return [tokenizer.decode(row).split(chat_format.EOS)[0].replace(chat_format.PAD, "") for row in out[:, longest:]]


def _answer(problem: ProblemRecord, text: str, thinking: bool) -> Answer:
    if not thinking:
        return check(problem, "", text)
    # A model that never stops thinking has not answered.
    reasoning, _, content = text.partition(chat_format.THINK_END)
    return check(problem, reasoning, content)
