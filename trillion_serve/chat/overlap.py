"""Where the end of a text may be the beginning of a word that is looked for."""

from collections.abc import Sequence


def longest_overlap(text: str, words: Sequence[str], *, whole: bool = False) -> int:
    """Length of the longest end of ``text`` that begins one of ``words``; ``whole`` counts a word itself."""
    return max(
        (
            size
            for word in words
            for size in range(1, min(len(text), len(word) - (not whole)) + 1)
            if text.endswith(word[:size])
        ),
        default=0,
    )
