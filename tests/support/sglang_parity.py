"""Compares a server's answers with a plain reference."""

from support import engine_parity
from support.engine_parity import Reference, assert_agrees, compare

__all__ = ["NEW_TOKENS", "Reference", "assert_agrees", "compare", "random_prompts"]

NEW_TOKENS = 24


def random_prompts(lengths: list[int], seed: int = 1) -> list[list[int]]:
    """Prompts of ordinary tokens."""
    return engine_parity.random_prompts(lengths, seed, tokens=range(20, 400))
