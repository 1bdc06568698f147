"""Numbers and their names in both languages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trillion_training.data.demo import number_words
from trillion_training.data.demo.number_words import between_parts, number, parts, places, words

below_a_thousand = st.integers(0, 999)
languages = st.sampled_from(["ko", "en"])


@pytest.mark.parametrize(
    ("value", "korean", "english"),
    [
        (0, "영", "zero"),
        (7, "칠", "seven"),
        (10, "십", "ten"),
        (11, "십일", "eleven"),
        (20, "이십", "twenty"),
        (21, "이십일", "twenty-one"),
        (100, "백", "one hundred"),
        (101, "백일", "one hundred one"),
        (110, "백십", "one hundred ten"),
        (347, "삼백사십칠", "three hundred forty-seven"),
        (615, "육백십오", "six hundred fifteen"),
        (999, "구백구십구", "nine hundred ninety-nine"),
    ],
)
def test_words_are_what_a_person_would_write(value: int, korean: str, english: str) -> None:
    assert words(value, "ko") == korean
    assert words(value, "en") == english


@given(below_a_thousand, languages)
def test_every_number_reads_back_from_its_name(value: int, language: str) -> None:
    assert number(words(value, language), language) == value


@given(below_a_thousand, languages)
def test_parts_add_up_to_the_number(value: int, language: str) -> None:
    assert sum(part for part, _ in parts(value, language)) == value


@given(below_a_thousand)
def test_every_name_is_cut_exactly_between_its_parts(value: int) -> None:
    assert between_parts(words(value, "ko"), "|").split("|") == [name for _, name in parts(value, "ko")]
    cut = between_parts(words(value, "en"), "|")
    assert cut == words(value, "en").replace("-", "|-|")


def test_reading_back_forgives_spacing_and_capitals_but_not_other_numbers() -> None:
    assert number("삼백 사십칠", "ko") == 347
    assert number("Three Hundred forty seven", "en") == 347
    assert number("일백", "ko") is None
    assert number("three hundred forty-seven", "ko") is None


@pytest.mark.parametrize("value", [-1, 1000])
def test_numbers_without_a_name_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"{value}, but must be from 0 to {number_words.LIMIT - 1}"):
        words(value, "en")


@pytest.mark.parametrize(
    ("value", "language", "expected"),
    [
        (615, "en", [("6", "six hundred"), ("1", ""), ("5", "fifteen")]),
        (610, "en", [("6", "six hundred"), ("1", ""), ("0", "ten")]),
        (615, "ko", [("6", "육백"), ("1", "십"), ("5", "오")]),
        (208, "en", [("2", "two hundred"), ("0", ""), ("8", "eight")]),
        (300, "ko", [("3", "삼백"), ("0", ""), ("0", "")]),
        (20, "en", [("2", "twenty"), ("0", "")]),
        (13, "en", [("1", ""), ("3", "thirteen")]),
        (0, "ko", [("0", "영")]),
    ],
)
def test_each_digit_has_the_word_said_for_it(value: int, language: str, expected: list[tuple[str, str]]) -> None:
    assert places(value, language) == expected


@given(below_a_thousand, languages)
def test_the_words_of_the_places_are_those_of_the_number(value: int, language: str) -> None:
    said = [word for _, word in places(value, language) if word]
    assert said == [name for _, name in parts(value, language)]
    assert "".join(digit for digit, _ in places(value, language)) == str(value)
