"""The demo's skills: each draws a problem with its worked reasoning and its answer.

Reasoning is written so that every step follows from a few tokens before it: that, rather than size, is what lets a
model of a few million parameters learn a skill in minutes. Parts stand on lines of their own because a newline is
one token, and digits are single tokens everywhere.

One-digit sums are counted on rather than recalled, since a sum that was held out cannot be recalled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from trillion_training.data.demo.number_words import places, words

LANGUAGES = ("ko", "en")

ITEMS = {
    "ko": (
        *("사과", "배", "포도", "레몬", "멜론", "복숭아", "자두"),
        *("컵", "책", "의자", "시계", "모자", "가방", "책상"),
    ),
    "en": (
        *("apple", "pear", "grape", "lemon", "melon", "peach", "plum"),
        *("cup", "book", "chair", "clock", "hat", "bag", "desk"),
    ),
}
MOST_ITEMS = 9

_PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "read_number": {
        "ko": ("다음 수를 한글로 쓰세요: {0}", "한글로 읽어 보세요: {0}"),
        "en": ("Write in words: {0}", "How do you read {0}"),
    },
    "write_number": {
        "ko": ("다음을 숫자로 쓰세요: {0}", "숫자로 바꾸세요: {0}"),
        "en": ("Write in digits: {0}", "Which number is {0}"),
    },
    "compare_larger": {
        "ko": ("더 큰 수를 고르세요: {0}, {1}", "어느 수가 더 큰가요? {0}, {1}"),
        "en": ("Which is larger: {0}, {1}", "Pick the larger number: {0}, {1}"),
    },
    "compare_smaller": {
        "ko": ("더 작은 수를 고르세요: {0}, {1}", "어느 수가 더 작은가요? {0}, {1}"),
        "en": ("Which is smaller: {0}, {1}", "Pick the smaller number: {0}, {1}"),
    },
    "sort": {
        "ko": ("작은 수부터 정렬하세요: {0}", "오름차순으로 쓰세요: {0}"),
        "en": ("Sort from smallest to largest: {0}", "Put in ascending order: {0}"),
    },
    "count": {
        "ko": ("모두 몇 개인가요? {0}", "개수를 세어 보세요: {0}"),
        "en": ("How many things are there? {0}", "Count these: {0}"),
    },
    "add": {
        "ko": ("계산하세요: {0} + {1}", "얼마인가요? {0} + {1}"),
        "en": ("Calculate: {0} + {1}", "What is {0} + {1}"),
    },
    "subtract": {
        "ko": ("계산하세요: {0} - {1}", "얼마인가요? {0} - {1}"),
        "en": ("Calculate: {0} - {1}", "What is {0} - {1}"),
    },
}


@dataclass(frozen=True)
class Problem:
    """One question of a skill.

    Attributes:
        skill: a name in :data:`SKILLS`.
        language: ``"ko"`` or ``"en"``.
        keys: what is asked, whatever the language, the phrasing or the order of operands that may be swapped. The
            first key is the problem's own; the others are the problems that its reasoning solves on the way.
        question, reasoning, answer: the chat.
        statement: the same knowledge as plain text.
    """

    skill: str
    language: str
    keys: tuple[str, ...]
    question: str
    reasoning: str
    answer: str
    statement: str


def _phrase(kind: str, language: str, rng: Random, *operands: object) -> str:
    return rng.choice(_PHRASES[kind][language]).format(*operands)


def _draw_number(rng: Random) -> int:
    # Numbers below 100 are few, so a small share teaches them; English names 11 to 19 apart, so they need a larger one.
    hundreds = 0 if rng.random() < 0.15 else 100 * rng.randrange(1, 10)
    return hundreds + (rng.randrange(10, 20) if rng.random() < 0.2 else rng.randrange(100))


def read_number(rng: Random, language: str) -> Problem:
    """Digits to words, a digit a line."""
    value = _draw_number(rng)
    answer = words(value, language)
    lines = [f"{digit}={name}" if name else digit for digit, name in places(value, language)]
    reasoning = "\n".join(lines)
    return Problem(
        "read_number",
        language,
        (f"number:{value}",),
        _phrase("read_number", language, rng, value),
        reasoning,
        answer,
        f"{value}\n{reasoning}\n{answer}",
    )


def write_number(rng: Random, language: str) -> Problem:
    """Words to digits, a digit a line."""
    value = _draw_number(rng)
    named = words(value, language)
    lines = [f"{name}={digit}" if name else digit for digit, name in places(value, language)]
    reasoning = "\n".join(lines)
    return Problem(
        "write_number",
        language,
        (f"number:{value}",),
        _phrase("write_number", language, rng, named),
        reasoning,
        str(value),
        f"{named}\n{reasoning}\n{value}",
    )


def compare(rng: Random, language: str) -> Problem:
    """The larger or the smaller of two numbers from 10 to 99 with different tens, by going through the tens."""
    a, b = _different_tens(rng, 2)
    larger = rng.random() < 0.5
    low, high = min(a, b), max(a, b)
    # What was asked is noted first, while the question is near, and the answer leads the last line.
    sign, answer, other = (">", high, low) if larger else ("<", low, high)
    reasoning = "\n".join([sign, *_through_the_tens((a, b)), f"{answer}{sign}{other}"])
    return Problem(
        "compare",
        language,
        (f"compare:{low}:{high}",),
        _phrase("compare_larger" if larger else "compare_smaller", language, rng, a, b),
        reasoning,
        str(answer),
        f"{a}, {b}\n{reasoning}",
    )


def _different_tens(rng: Random, count: int) -> list[int]:
    return [10 * tens + rng.randrange(10) for tens in rng.sample(range(1, 10), count)]


def _through_the_tens(values: Sequence[int]) -> list[str]:
    """Go through the tens from 1 to 9 and name the value that has each: a look-up a line, rather than a search for the
    smallest."""
    by_tens = {value // 10: value for value in values}
    return [f"{tens}:{by_tens[tens]}" if tens in by_tens else f"{tens}" for tens in range(1, 10)]


def sort(rng: Random, language: str) -> Problem:
    """Three to five numbers from 10 to 99 with different tens, smallest first, by going through the tens."""
    values = _different_tens(rng, rng.randint(3, 5))
    ordered = sorted(values)
    listed, answer = ", ".join(map(str, values)), ", ".join(map(str, ordered))
    reasoning = "\n".join(_through_the_tens(values))
    return Problem(
        "sort",
        language,
        ("sort:" + ":".join(map(str, ordered)),),
        _phrase("sort", language, rng, listed),
        reasoning,
        answer,
        f"{listed}\n{reasoning}\n{answer}",
    )


def count(rng: Random, language: str) -> Problem:
    """How many things a list of up to nine has, by numbering them."""
    things = rng.sample(range(len(ITEMS[language])), rng.randint(2, MOST_ITEMS))
    names = [ITEMS[language][thing] for thing in things]
    listed = ", ".join(names)
    reasoning = "\n".join(f"{i}:{name}" for i, name in enumerate(names, start=1))
    return Problem(
        "count",
        language,
        ("count:" + ":".join(map(str, sorted(things))),),
        _phrase("count", language, rng, listed),
        reasoning,
        str(len(names)),
        f"{listed}\n{reasoning}\n{len(names)}",
    )


def add_one_digit(rng: Random, language: str) -> Problem:
    """a + b, both from 1 to 9, counted on: what is left to add, and the sum so far."""
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    reasoning = "\n".join(f"{left}:{a + b - left}" for left in range(b, -1, -1))
    return _sum_problem("add_one_digit", "+", a, b, reasoning, rng, language)


def subtract_one_digit(rng: Random, language: str) -> Problem:
    """a - b, b and the difference both from 1 to 9, counted down: what is left to take, and the rest so far."""
    b, difference = rng.randint(1, 9), rng.randint(1, 9)
    a = b + difference
    reasoning = "\n".join(f"{left}:{difference + left}" for left in range(b, -1, -1))
    return _sum_problem("subtract_one_digit", "-", a, b, reasoning, rng, language)


def add_two_digit(rng: Random, language: str) -> Problem:
    """a + b, both from 10 to 99, units first, with the carry."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    units = a % 10 + b % 10
    tens = a // 10 + b // 10
    carried = f"{a // 10}+{b // 10}+1={tens + 1}" if units >= 10 else f"{a // 10}+{b // 10}={tens}"
    steps = (_key("+", a % 10, b % 10), _key("+", a // 10, b // 10))
    return _sum_problem("add_two_digit", "+", a, b, f"{a % 10}+{b % 10}={units}\n{carried}", rng, language, steps)


def subtract_two_digit(rng: Random, language: str) -> Problem:
    """a - b, both from 10 to 99 and b no larger than a, units first, with the borrowing."""
    a, b = sorted((rng.randint(10, 99), rng.randint(10, 99)), reverse=True)
    borrow = a % 10 < b % 10
    units, tens = a % 10 + 10 * borrow, a // 10 - borrow
    lines = f"{units}-{b % 10}={units - b % 10}\n{tens}-{b // 10}={tens - b // 10}"
    steps = (_key("-", units, b % 10), _key("-", tens, b // 10))
    return _sum_problem("subtract_two_digit", "-", a, b, lines, rng, language, steps)


def _sum_problem(
    skill: str,
    sign: str,
    a: int,
    b: int,
    reasoning: str,
    rng: Random,
    language: str,
    steps: tuple[str, ...] = (),
) -> Problem:
    answer = a + b if sign == "+" else a - b
    return Problem(
        skill,
        language,
        (_key(sign, a, b), *steps),
        _phrase("add" if sign == "+" else "subtract", language, rng, a, b),
        reasoning,
        str(answer),
        f"{a} {sign} {b}\n{reasoning}\n{answer}",
    )


def _key(sign: str, a: int, b: int) -> str:
    low, high = (min(a, b), max(a, b)) if sign == "+" else (a, b)
    return f"{low}{sign}{high}"


SKILLS: dict[str, Callable[[Random, str], Problem]] = {
    "read_number": read_number,
    "write_number": write_number,
    "compare": compare,
    "sort": sort,
    "count": count,
    "add_one_digit": add_one_digit,
    "subtract_one_digit": subtract_one_digit,
    "add_two_digit": add_two_digit,
    "subtract_two_digit": subtract_two_digit,
}

BESIDE = ("add_two_digit", "subtract_two_digit")
"""Skills that are taught and measured, but are no part of the demo's target."""
