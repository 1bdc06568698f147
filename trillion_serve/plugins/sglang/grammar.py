"""Lets ``--grammar-backend llguidance`` and ``--reasoning-parser`` go together.

SGLang 0.5.23 asks a grammar backend for three functions to fall back on where a request has no grammar. Its llguidance
backend has none of them, and every request with a grammar would be refused. None is a fallback that it takes too.
"""

from typing import Any

HOOKED = "sglang.srt.constrained.reasoner_grammar_backend.ReasonerGrammarBackend._make_grammar_object"

_FALLBACKS = ("allocate_vocab_mask", "move_vocab_mask", "apply_vocab_mask")


def fill_in(reasoner: Any, *args: Any, **kwargs: Any) -> None:
    """Give the wrapped backend the fallbacks that it lacks; runs before SGLang asks for them."""
    for name in _FALLBACKS:
        if not hasattr(reasoner.grammar_backend, name):
            setattr(reasoner.grammar_backend, name, None)
