"""The demo's problems: right, checkable, and split so that nothing held out is seen in training."""

import re
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import pytest

from trillion_training.data.demo.checker import check_answer
from trillion_training.data.demo.number_words import number
from trillion_training.data.demo.skills import LANGUAGES, SKILLS, Problem
from trillion_training.data.demo.split import is_held_out
from trillion_training.data.demo.write import DemoSizes, held_out, training_problems, write_demo
from trillion_training.data.jsonl import ChatMessage, ProblemRecord, TextDocument, read_jsonl

CELLS = [(skill, language) for skill in SKILLS for language in LANGUAGES]


def problems(skill: str, language: str, count: int = 200) -> list[Problem]:
    rng = Random(f"{skill}:{language}")
    return [SKILLS[skill](rng, language) for _ in range(count)]


def solve(problem: Problem) -> str:
    """Solve a question from its text alone, in another way than the generator."""
    question = problem.question
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    if problem.skill == "write_number":
        spans = re.findall(r"[영일이삼사오육칠팔구십백]+|[a-z]+(?:[ -][a-z]+)*", question)
        return next(str(n) for span in spans for n in names_in(span, problem.language))
    if problem.skill == "sort":
        return ", ".join(map(str, sorted(numbers)))
    if problem.skill == "compare":
        return str((max if re.search("larger|큰", question) else min)(numbers))
    if problem.skill == "count":
        return str(question.count(",") + 1)
    if problem.skill.startswith("add"):
        return str(sum(numbers))
    if problem.skill.startswith("subtract"):
        return str(abs(numbers[0] - numbers[1]))
    value = numbers[0]
    return next(name for name in [problem.answer] if number(name, problem.language) == value)


def names_in(span: str, language: str) -> list[int]:
    """The longest number named at the end of a span of words."""
    found = [
        value
        for start in range(len(span))
        if (start == 0 or language == "ko" or span[start - 1] == " ")
        for end in range(len(span), start, -1)
        if (value := number(span[start:end], language)) is not None
    ]
    return found[:1]


@pytest.mark.parametrize(("skill", "language"), CELLS)
def test_every_answer_is_right_and_accepted_by_the_checker(skill: str, language: str) -> None:
    for problem in problems(skill, language):
        assert solve(problem) == problem.answer, problem.question
        assert check_answer(skill, problem.answer, problem.answer)


@pytest.mark.parametrize(("skill", "language"), CELLS)
def test_the_checker_refuses_the_answer_to_another_problem(skill: str, language: str) -> None:
    drawn = problems(skill, language)
    wrong = [(p, q) for p, q in pairwise(drawn) if p.answer != q.answer]
    assert len(wrong) > 50
    assert not any(check_answer(skill, p.answer, q.answer) for p, q in wrong)


@pytest.mark.parametrize(
    ("skill", "expected", "text", "right"),
    [
        ("read_number", "삼백사십칠", " 삼백 사십칠.\n", True),
        ("read_number", "삼백사십칠", "삼백사십팔", False),
        ("read_number", "three hundred forty-seven", "Three hundred forty seven", True),
        ("write_number", "347", "347.", True),
        ("write_number", "347", "3 47", False),
        ("write_number", "347", "0347", False),
        ("write_number", "347", "347 or 348", False),
        ("write_number", "347", "", False),
        ("sort", "7, 31, 52", "7,31, 52", True),
        ("sort", "7, 31, 52", "7 31 52", False),
        ("sort", "7, 31, 52", "7, 52, 31", False),
        ("sort", "7, 31, 52", "7, 31", False),
        ("count", "3", "three", False),
    ],
)
def test_the_checker_forgives_writing_but_no_mistake(skill: str, expected: str, text: str, right: bool) -> None:
    assert check_answer(skill, expected, text) is right


def test_training_and_held_out_share_no_problem_nor_a_step_of_one() -> None:
    asked = {p.key for p in held_out(Random(1), 360)}
    assert len(asked) > 200
    seen = {key for p in islice(training_problems(Random(2)), 20_000) for key in p.keys}
    assert len(seen) > 5_000
    assert asked.isdisjoint(seen)


def test_the_split_does_not_depend_on_language_phrasing_or_order_of_operands() -> None:
    by_key: dict[str, set[bool]] = {}
    for skill, language in CELLS:
        for problem in problems(skill, language, 500):
            by_key.setdefault(problem.keys[0], set()).add(is_held_out(problem))
    assert all(len(sides) == 1 for sides in by_key.values())
    assert {"3+9"} & by_key.keys() and "9+3" not in by_key


def test_a_problem_whose_steps_are_held_out_is_held_out() -> None:
    held = {p.keys[0] for p in problems("add_one_digit", "ko", 500) if is_held_out(p)}
    through = [p for p in problems("add_two_digit", "en", 500) if held & set(p.keys)]
    assert through
    assert all(is_held_out(p) for p in through)


def test_names_that_others_are_made_of_are_always_taught() -> None:
    for value in (0, 7, 13, 20, 90, 400):
        problem = Problem("read_number", "ko", (f"number:{value}",), "", "", "", "")
        assert not is_held_out(problem)


def test_any_first_part_of_the_held_out_problems_is_balanced() -> None:
    first = list(held_out(Random(0), len(CELLS) * 2))
    assert sorted((p.skill, p.language) for p in first) == sorted(CELLS * 2)
    assert len({p.messages[0].content for p in first}) == len(first)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    sizes = DemoSizes(pretrain=50, sft=50, held_out=36)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        counts = write_demo(tmp_path / name, seed, sizes)
        assert counts == {"pretrain.jsonl": 50, "sft.jsonl": 50, "heldout.jsonl": 36, "tokenizer.jsonl": 100}
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "c" / file.name).read_bytes()


def test_what_is_written_reads_back_with_thinking_and_without(tmp_path: Path) -> None:
    write_demo(tmp_path, 0, DemoSizes(pretrain=5, sft=200, held_out=18))
    chats = list(read_jsonl(tmp_path / "sft.jsonl", ProblemRecord))
    thinking = [chat for chat in chats if chat.messages[1].reasoning]
    assert 110 < len(thinking) < 170
    assert all(chat.messages[1].content == chat.answer for chat in chats)
    assert all(isinstance(chat.messages[0], ChatMessage) for chat in chats)
    assert len(list(read_jsonl(tmp_path / "pretrain.jsonl", TextDocument))) == 5
