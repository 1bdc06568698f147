"""The language to speak to a user in, where the server has a sentence of its own to say."""

import re
from typing import Literal

Language = Literal["ko", "en"]

_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
_LATIN = re.compile("[A-Za-z]")
_LETTERS_OF_A_SYLLABLE = 3


def language_of(text: str) -> Language:
    """Korean where Hangul outweighs Latin letters, a syllable as much as three letters; else English."""
    hangul = len(_HANGUL.findall(text)) * _LETTERS_OF_A_SYLLABLE
    return "ko" if hangul and hangul >= len(_LATIN.findall(text)) else "en"
