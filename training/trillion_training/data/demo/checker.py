"""Exact checks of an answer to a demo problem."""

import re

from trillion_training.data.demo import number_words

_INTEGER = re.compile(r"\d+")


def check_answer(skill: str, expected: str, text: str) -> bool:
    """Whether ``text`` is the right answer.

    Only what a person would not count as a mistake may differ: surrounding space, a final full stop, spaces after
    commas, and spaces, hyphens and capitals in the name of a number.

    Args:
        skill: the problem's skill.
        expected: the problem's ``answer``.
        text: what was answered, without reasoning.
    """
    text = text.strip().removesuffix(".").rstrip()
    if skill == "read_number":
        return number_words.squeeze(text) == number_words.squeeze(expected)
    if skill == "sort":
        return [item.strip() for item in text.split(",")] == expected.split(", ")
    return _INTEGER.fullmatch(text) is not None and text == expected
