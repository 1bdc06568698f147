"""What counts as a loop, and what only looks like one."""

import json
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trillion_serve.chat.loops import CONTENT_LOOPS, REASONING_LOOPS, LoopConfig, LoopDetector

SMALL = LoopConfig(repeats=3, min_tokens=12, near_repeats=6, near_min_tokens=48, similarity=0.75, max_period=40)
DRAWN = random.Random(7)
NAMES = ["김철수", "이영희", "박민수", "최지우", "Alice", "Bob", "Carol", "Dave"]
VERBS = ["일합니다", "삽니다", "공부합니다", "왔습니다"]


Cut = Callable[[str], list[int]]


def pieces(text: str) -> list[int]:
    """Tokens of text as a tokenizer of a middling vocabulary cuts them: two or three characters each."""
    return [hash(text[at : at + 3]) for at in range(0, len(text), 3)]


def words(text: str) -> list[int]:
    """Tokens of text cut at its words, numbers digit by digit."""
    cut: list[str] = []
    for char in text:
        if cut and char.isalpha() and cut[-1][-1].isalpha():
            cut[-1] += char
        else:
            cut.append(char)
    return list(map(hash, cut))


def found_at(config: LoopConfig, tokens: Iterable[int]) -> int | None:
    """How many tokens it takes to see a loop; None if there is none."""
    detector = LoopDetector(config)
    return next((at for at, token in enumerate(tokens, 1) if detector.feed(token)), None)


LEGITIMATE = {
    "a numbered list": "\n".join(f"{i}. {DRAWN.choice(NAMES)}는 부산에서 {DRAWN.choice(VERBS)}." for i in range(1, 60)),
    "a list of one word": "\n".join(f"{i}. 안녕" for i in range(1, 101)),
    "a table": "| 번호 | 이름 | 나이 |\n|---|---|---|\n"
    + "\n".join(f"| {i} | {DRAWN.choice(NAMES)} | {DRAWN.randint(20, 60)} |" for i in range(60)),
    "objects that differ in one number": json.dumps([{"id": i, "status": "ok", "active": True} for i in range(60)]),
    "objects": json.dumps(
        [
            {"id": i, "name": DRAWN.choice(NAMES), "price": DRAWN.randint(1, 999), "category": "tools"}
            for i in range(40)
        ],
        indent=2,
        ensure_ascii=False,
    ),
    "code": "\n".join(
        f"    @property\n    def {name}(self) -> int:\n        return self._{name}\n"
        for name in ["alpha", "beta", "width", "height", "depth", "color", "mass", "speed", "size", "age"]
    ),
    "a multiplication table": "\n".join(f"{a} x {b} = {a * b}" for a in range(2, 10) for b in range(1, 10)),
    "a refrain": "\n\n".join(
        f"{verse}\n별이 쏟아지는 밤\n나는 그대를 생각하네\n바람이 불어오면\n나는 그대를 기다리네"
        for verse in ["첫 눈이 오던 날", "꽃이 피던 봄날", "비가 내린 여름", "낙엽 지는 가을"]
    ),
    "laughter": "하" * 120,
    "a line": "-" * 200,
    "indentation": " " * 200,
    "a row of zeros": "[" + ", ".join("0" * 64) + "]",
    "prose": " ".join(DRAWN.choice([*NAMES, "went", "to", "the", "sea", "and", "saw"]) for _ in range(900)),
}
"""Text that repeats itself, of up to some thousand characters, as good answers do."""

SCHEMATIC = {"a list of one word", "objects", "objects that differ in one number"}
"""Too much alike for reasoning that goes on like this for a thousand tokens."""

LOOPS = {
    "a sentence": "잠깐, 다시 생각해 보자. 답은 둘이다. " * 400,
    "a word": "그리고 " * 2000,
    "a paragraph": ("Let me read the problem again. It asks for the foxes. There are two. " * 2 + "Hm.\n") * 80,
    "a count": "".join(f"Wait, let me check step {i} again: the answer is still 42, I think. " for i in range(600)),
    "a name": "".join(
        f"잠깐, {DRAWN.choice(NAMES)}의 경우를 다시 생각해 보자. 아니다, 답은 둘이다. 다시 한 번 확인해 보자. "
        for _ in range(600)
    ),
}


@pytest.mark.parametrize("cut", [words, pieces])
@pytest.mark.parametrize("name", LEGITIMATE)
def test_an_answer_may_repeat_itself(name: str, cut: Cut) -> None:
    assert found_at(CONTENT_LOOPS, cut(LEGITIMATE[name])) is None


@pytest.mark.parametrize("word", ["사랑해 ", "hello ", "하하 "])
def test_a_user_may_ask_for_a_word_a_hundred_times(word: str) -> None:
    assert found_at(CONTENT_LOOPS, words(word * 100)) is None


@pytest.mark.parametrize("name", sorted(set(LEGITIMATE) - SCHEMATIC))
def test_reasoning_may_repeat_itself_too(name: str) -> None:
    assert found_at(REASONING_LOOPS, words(LEGITIMATE[name])) is None


@pytest.mark.parametrize("start", ["", "The quick brown fox jumps over the lazy dog. "])
@pytest.mark.parametrize("name", ["a sentence", "a word", "a paragraph"])
@pytest.mark.parametrize("config", [REASONING_LOOPS, CONTENT_LOOPS])
def test_an_exact_loop_is_seen_within_a_cycle_of_its_limit(config: LoopConfig, name: str, start: str) -> None:
    before, tokens = words(start), words(LOOPS[name])
    period = next(p for p in range(1, 513) if tokens[:600] == tokens[p : p + 600])
    limit = max(config.min_tokens, config.repeats * period)
    seen = found_at(config, [*before, *tokens])
    assert seen is not None
    assert limit <= seen <= len(before) + limit + period + 3


@pytest.mark.parametrize("name", ["a count", "a name"])
@pytest.mark.parametrize("config", [REASONING_LOOPS, CONTENT_LOOPS])
def test_a_loop_in_which_a_word_changes_is_seen_too(config: LoopConfig, name: str) -> None:
    seen = found_at(config, words(LOOPS[name]))
    assert seen is not None
    assert config.near_min_tokens - 64 <= seen <= 2 * config.near_min_tokens


@settings(deadline=None)
@given(
    start=st.lists(st.integers(100, 999), unique=True, max_size=30),
    cycle=st.lists(st.integers(0, 99), min_size=1, max_size=20, unique=True),
)
def test_any_exact_cycle_is_seen_at_its_limit(start: list[int], cycle: list[int]) -> None:
    limit = len(start) + max(SMALL.min_tokens, SMALL.repeats * len(cycle))
    assert found_at(SMALL, [*start, *cycle * 30]) in range(limit, limit + 3)


@settings(deadline=None)
@given(cycle=st.lists(st.integers(0, 99), min_size=12, max_size=20, unique=True), data=st.data())
def test_a_cycle_in_which_one_token_becomes_one_or_two_others_is_seen(cycle: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(cycle) - 1))
    fresh = iter(range(100, 10_000))
    tokens: list[int] = []
    for _ in range(40):
        changed = [next(fresh) for _ in range(data.draw(st.integers(1, 2)))]
        tokens += [*cycle[:at], *changed, *cycle[at + 1 :]]
    assert found_at(SMALL, tokens) is not None


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 5), max_size=300))
def test_no_loop_is_seen_before_it_is_long_enough(tokens: list[int]) -> None:
    seen = found_at(SMALL, tokens)
    assert seen is None or seen >= SMALL.min_tokens


@given(tokens=st.lists(st.integers(), unique=True, max_size=500))
def test_what_does_not_repeat_is_no_loop(tokens: list[int]) -> None:
    assert found_at(SMALL, tokens) is None


def test_a_cycle_longer_than_the_longest_is_not_seen() -> None:
    assert found_at(SMALL, list(range(SMALL.max_period + 1)) * 20) is None
    assert found_at(SMALL, list(range(SMALL.max_period)) * 20) is not None


def test_what_is_remembered_is_bounded() -> None:
    detector = LoopDetector(SMALL)
    for token in range(10_000):
        detector.feed(token)
    assert len(detector._last) <= SMALL.max_period + 1
    assert len(detector._tokens) <= SMALL.max_period + 1
