"""Whether an answer can be held to a grammar, found out in a process of its own.

A grammar of a few hundred characters may take minutes and gigabytes to see through. So the process that looks at them
has a bound on both, and one that needs more is refused.
"""

import asyncio
import atexit
import multiprocessing
import resource
import signal
import threading
from collections.abc import Callable
from functools import lru_cache

from cachetools import LRUCache
from llguidance import LLMatcher, grammar_from
from pebble import ProcessExpired, ProcessPool

from trillion_serve.engines.protocol import Grammar
from trillion_serve.errors import OverloadedError

SECONDS = 2.0
"""Most of a processor's time that a check may take."""
_PATIENCE = 5.0
"""How many times as long a check is waited for, where the processors have other work too."""
_BYTES = 2 * 2**30
"""Most address space of the process that checks."""
_KNOWN = 256
"""Grammars whose check is remembered: clients send the same few again and again."""


class MustWait(Exception):
    """A check was asked for on the event loop, which would stand still for it; ask again from a thread."""


def refusal_of(grammar: Grammar) -> str | None:
    """Why no answer can be held to a grammar; None if one can.

    Raises:
        MustWait: this is the event loop, and the answer is not known yet.
        OverloadedError: the processors had no time to check it.
    """
    with _lock:
        known = _known.get(grammar)
    if known is None:
        if _on_event_loop():
            raise MustWait
        known = _checked(grammar)
        with _lock:
            _known[grammar] = known
    return known or None


def _checked(grammar: Grammar) -> str:
    with _lock:
        pool = _pool()
    check = pool.schedule(_problem_of, args=[grammar.kind, grammar.value, SECONDS], timeout=_PATIENCE * SECONDS)
    try:
        return check.result()
    except TimeoutError:
        raise OverloadedError("there was no time to check the grammar; try again later", retry_after=1.0) from None
    except (ProcessExpired, MemoryError) as error:
        if isinstance(error, ProcessExpired) and error.exitcode == -signal.SIGPROF:
            return f"it takes more than {SECONDS:g} s to check; make it simpler"
        return f"it takes more than {_BYTES >> 30} GiB of memory to check; make it simpler"


def _problem_of(kind: str, value: str, seconds: float) -> str:
    """What is wrong with a grammar; nothing if it can be followed. The process dies of SIGPROF if this takes longer."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    make: dict[str, Callable[[str], str]] = {
        "json_schema": LLMatcher.grammar_from_json_schema,
        "regex": LLMatcher.grammar_from_regex,
        "ebnf": lambda text: grammar_from("grammar", text),
    }
    try:
        return LLMatcher.validate_grammar(make[kind](value))
    except ValueError as error:
        return str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@lru_cache(maxsize=1)
def _pool() -> ProcessPool:
    # A fork of a process with threads may begin with locks that nobody will open.
    pool = ProcessPool(max_workers=1, initializer=_bound_memory, context=multiprocessing.get_context("spawn"))
    atexit.register(pool.stop)
    return pool


def _bound_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))


_known: LRUCache[Grammar, str] = LRUCache(_KNOWN)
# Bodies are read in several threads, and neither the cache nor the making of the one pool is made for that.
_lock = threading.Lock()
