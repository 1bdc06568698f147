"""Which problems are held out: a property of the problem itself, the same for every seed and every run."""

from hashlib import blake2b

from trillion_training.data.demo.skills import Problem

HELD_OUT_ONE_IN = 10


def is_held_out(problem: Problem) -> bool:
    """Whether a problem belongs to the held-out split.

    It does when its own key does, or that of any problem which its reasoning solves on the way, so that no training
    example states the solution of a held-out problem. Keys leave out language, phrasing and the order of operands
    that may be swapped.
    """
    return any(_key_is_held_out(key) for key in problem.keys)


def _key_is_held_out(key: str) -> bool:
    if _is_atomic(key):
        return False
    digest = blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % HELD_OUT_ONE_IN == 0


def _is_atomic(key: str) -> bool:
    """Whether other problems are composed of this one, so that nobody could answer it unseen: the names of 0 to 20,
    of the tens and of the hundreds."""
    kind, _, value = key.partition(":")
    if kind != "number":
        return False
    number = int(value)
    return number <= 20 or (number < 100 and number % 10 == 0) or number % 100 == 0
