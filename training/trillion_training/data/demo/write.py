"""Writes the demo's files: text to pre-train on, chats to fine-tune on, held-out problems, text for the tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from trillion_training.data.demo.number_words import between_parts
from trillion_training.data.demo.skills import LANGUAGES, SKILLS, Problem
from trillion_training.data.demo.split import is_held_out
from trillion_training.data.jsonl import ChatMessage, ProblemRecord, TextDocument, write_jsonl

PRETRAIN_FILE, SFT_FILE, HELD_OUT_FILE, TOKENIZER_FILE = (
    "pretrain.jsonl",
    "sft.jsonl",
    "heldout.jsonl",
    "tokenizer.jsonl",
)

WEIGHTS = {
    "read_number": 3,
    "write_number": 3,
    "compare": 3,
    "sort": 3,
    "count": 2,
    "add_one_digit": 2,
    "subtract_one_digit": 2,
    "add_two_digit": 1,
    "subtract_two_digit": 1,
}
"""How often a skill is drawn for training, relative to the others."""


@dataclass(frozen=True)
class DemoSizes:
    """How much to write.

    Attributes:
        pretrain: text documents.
        sft: chats.
        held_out: problems held out, as many of each skill and language as there are.
        direct: share of the chats that answer without reasoning.
        statements: most statements in a document.
    """

    pretrain: int = 10_000
    sft: int = 24_000
    held_out: int = 360
    direct: float = 0.3
    statements: int = 4


def write_demo(out: Path, seed: int, sizes: DemoSizes | None = None) -> dict[str, int]:
    """Write all files of the demo into ``out``; the same seed gives the same bytes.

    Returns:
        The number of records of each file.
    """
    sizes = sizes or DemoSizes()
    out.mkdir(parents=True, exist_ok=True)
    documents = list(islice(_documents(Random(f"{seed}:pretrain"), sizes.statements), sizes.pretrain))
    chats = list(islice(_chats(Random(f"{seed}:sft"), sizes.direct), sizes.sft))
    tokenizer_text = [*(d.text for d in documents[:4000]), *(_plain(c) for c in chats[:4000])]
    return {
        PRETRAIN_FILE: write_jsonl(out / PRETRAIN_FILE, documents),
        SFT_FILE: write_jsonl(out / SFT_FILE, chats),
        HELD_OUT_FILE: write_jsonl(out / HELD_OUT_FILE, held_out(Random(f"{seed}:held out"), sizes.held_out)),
        TOKENIZER_FILE: write_jsonl(
            out / TOKENIZER_FILE, (TextDocument(text=between_parts(text, "\n")) for text in tokenizer_text)
        ),
    }


def training_problems(rng: Random) -> Iterator[Problem]:
    """Problems of the training split, without end, skills drawn by :data:`WEIGHTS`."""
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    while True:
        problem = SKILLS[rng.choices(names, weights)[0]](rng, rng.choice(LANGUAGES))
        if not is_held_out(problem):
            yield problem


def held_out(rng: Random, most: int) -> Iterator[ProblemRecord]:
    """Different held-out problems, skill and language in turn, so that any first part is balanced.

    A skill that has no more left is passed over.
    """
    cells = [(skill, language) for skill in SKILLS for language in LANGUAGES]
    asked: set[str] = set()
    while cells and len(asked) < most:
        for cell in tuple(cells):
            problem = _draw_held_out(rng, *cell, asked)
            if problem is None:
                cells.remove(cell)
            elif len(asked) < most:
                asked.add(problem.question)
                yield record(problem, f"heldout-{len(asked)}", thinking=True)


def record(problem: Problem, name: str, *, thinking: bool) -> ProblemRecord:
    """A problem as a line of a data file; without ``thinking`` it is answered directly."""
    return ProblemRecord(
        id=name,
        skill=problem.skill,
        language="ko" if problem.language == "ko" else "en",
        key=problem.keys[0],
        answer=problem.answer,
        messages=[
            ChatMessage(role="user", content=problem.question),
            ChatMessage(
                role="assistant",
                reasoning=problem.reasoning if thinking else None,
                content=problem.answer,
            ),
        ],
    )


def _draw_held_out(rng: Random, skill: str, language: str, asked: set[str], tries: int = 2000) -> Problem | None:
    for _ in range(tries):
        problem = SKILLS[skill](rng, language)
        if is_held_out(problem) and problem.question not in asked:
            return problem
    return None


def _documents(rng: Random, most: int) -> Iterator[TextDocument]:
    problems = training_problems(rng)
    while True:
        statements = [problem.statement for problem in islice(problems, rng.randint(1, most))]
        yield TextDocument(text="\n\n".join(statements))


def _chats(rng: Random, direct: float) -> Iterator[ProblemRecord]:
    for i, problem in enumerate(training_problems(rng)):
        yield record(problem, f"train-{i}", thinking=rng.random() >= direct)


def _plain(chat: ProblemRecord) -> str:
    return "\n".join(part for m in chat.messages for part in (m.role, m.content, m.reasoning) if part)
