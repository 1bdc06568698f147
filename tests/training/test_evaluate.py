"""Asking a model in batches, and counting what is right."""

from pathlib import Path

import pytest
import torch

from trillion_model.vaetki import chat_format
from trillion_training import checkpoint, stages
from trillion_training.answers import accuracy, check
from trillion_training.config import Recipe
from trillion_training.data.jsonl import ProblemRecord, read_jsonl
from trillion_training.evaluate import ask


@pytest.fixture(scope="module")
def problems(demo: Path) -> list[ProblemRecord]:
    return list(read_jsonl(demo / "heldout.jsonl", ProblemRecord))


@pytest.fixture(scope="module")
def run(demo: Path, shape: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained just enough to write the format."""
    folder = tmp_path_factory.mktemp("runs")
    fields = {"budget": {"steps": 2}, "batching": {"length": 128, "rows": 4}, "optimizer": {"lr": 0.01}}
    stages.pretrain(
        Recipe.model_validate(fields | {"initial": {"embedding_std": 1.0, "post_norm": 0.3}}),
        str(shape),
        tokenizer_folder,
        demo / "pretrain.jsonl",
        folder / "base",
    )
    longer = Recipe.model_validate(fields | {"budget": {"steps": 40}})
    return stages.sft(longer, folder / "base", demo / "sft.jsonl", folder / "tuned")


@pytest.mark.parametrize("thinking", [True, False])
def test_batched_answers_are_those_of_one_question_at_a_time(
    thinking: bool, run: Path, problems: list[ProblemRecord]
) -> None:
    model, tokenizer = checkpoint.load_model(run), checkpoint.load_tokenizer(run)
    answers = list(ask(model, tokenizer, problems[:12], thinking=thinking, max_new_tokens=24, batch_size=5))
    assert {a.problem.id for a in answers} == {p.id for p in problems[:12]}
    for answer in answers:
        assert (answer.reasoning, answer.content) == alone(model, tokenizer, answer.problem, thinking)


def alone(model, tokenizer, problem: ProblemRecord, thinking: bool) -> tuple[str, str]:
    """The greedy answer without cache, batch or padding."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.messages[0].content}],
        add_generation_prompt=True,
        enable_thinking=thinking,
        return_dict=False,
    )
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + 24 and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    text = tokenizer.decode(ids[len(prompt) :]).removesuffix(chat_format.EOS)
    if not thinking:
        return "", text.strip()
    reasoning, _, content = text.partition(chat_format.THINK_END)
    return reasoning.strip(), content.strip()


def test_accuracy_is_counted_by_skill_and_by_language_without_what_is_beside(problems: list[ProblemRecord]) -> None:
    right = {"read_number", "sort"}
    answers = [check(p, "", p.answer if p.skill in right else "?") for p in problems[:18]]
    shares = accuracy(answers)
    assert shares["sort/ko"] == shares["read_number/en"] == 1.0
    assert shares["count/ko"] == shares["add_two_digit/en"] == 0.0
    assert shares["ko"] == shares["en"] == pytest.approx(2 / 7)


def test_reasoning_is_no_answer(problems: list[ProblemRecord]) -> None:
    assert not check(problems[0], problems[0].answer, "").correct
    assert check(problems[0], "", f" {problems[0].answer}.").correct
