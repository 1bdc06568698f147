"""Numbers from 0 to 999 in Korean (Sino-Korean) and English words, and their parts."""

import re

LIMIT = 1000

KOREAN_DIGITS = ("영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구")
ENGLISH_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
ENGLISH_TENS = (*("",) * 2, "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def parts(number: int, language: str) -> list[tuple[int, str]]:
    """Split a number into the values that are named one by one, with their names.

    ``347`` gives ``[(300, "삼백"), (40, "사십"), (7, "칠")]`` in Korean; English names 11 to 19 whole.

    Args:
        number: from 0 to 999.
        language: ``"ko"`` or ``"en"``.

    Raises:
        ValueError: the number has no name here.
    """
    if not 0 <= number < LIMIT:
        raise ValueError(f"number is {number}, but must be from 0 to {LIMIT - 1}")
    korean = language == "ko"
    hundreds, rest = divmod(number, 100)
    named = []
    if hundreds:
        named.append((hundreds * 100, _korean(hundreds, "백") if korean else f"{ENGLISH_SMALL[hundreds]} hundred"))
    if rest >= 20 or (korean and rest >= 10):
        tens, rest = divmod(rest, 10)
        named.append((tens * 10, _korean(tens, "십") if korean else ENGLISH_TENS[tens]))
    if rest or not named:
        named.append((rest, KOREAN_DIGITS[rest] if korean else ENGLISH_SMALL[rest]))
    return named


def places(number: int, language: str) -> list[tuple[str, str]]:
    """Each digit with the word that is said for it; no word for a zero, nor for the 1 of an English 11 to 19.

    ``615`` gives ``[("6", "six hundred"), ("1", ""), ("5", "fifteen")]`` in English.
    """
    said = dict(parts(number, language))
    digits = str(number)
    values = [int(digit) * 10 ** (len(digits) - 1 - i) for i, digit in enumerate(digits)]
    if language == "en" and 10 <= number % 100 < 20:
        values[-2:] = [0, number % 100]
    return [
        (digit, said.get(value, "") if value or not number else "") for digit, value in zip(digits, values, strict=True)
    ]


def words(number: int, language: str) -> str:
    """Name a number: ``347`` is ``삼백사십칠`` or ``three hundred forty-seven``."""
    names = [name for _, name in parts(number, language)]
    if language == "ko":
        return "".join(names)
    if len(names) > 1 and names[-2] in ENGLISH_TENS:
        names[-2:] = [f"{names[-2]}-{names[-1]}"]
    return " ".join(names)


def number(text: str, language: str) -> int | None:
    """Read a name back, spaces, hyphens and capitals aside; None when it names no number below 1000."""
    return _NUMBERS[language].get(squeeze(text))


def squeeze(text: str) -> str:
    """A name without what may vary in writing it: spaces, hyphens, capitals."""
    return "".join(text.lower().replace("-", " ").split())


def between_parts(text: str, separator: str) -> str:
    """Put ``separator`` between the parts of every number that ``text`` names.

    A tokenizer trained on such text learns a part as a token and never merges across parts, so that a number is
    always cut the way it is composed.
    """
    return _JOINTS.sub(separator, text)


def _korean(digit: int, unit: str) -> str:
    # One of a unit goes unsaid: 백, not 일백.
    return unit if digit == 1 else KOREAN_DIGITS[digit] + unit


_JOINTS = re.compile("(?<=[십백])(?=[일이삼사오육칠팔구십])|(?<=ty)(?=-)|(?<=ty-)")

_NUMBERS = {language: {squeeze(words(n, language)): n for n in range(LIMIT)} for language in ("ko", "en")}
