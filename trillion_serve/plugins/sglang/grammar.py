"""Mends grammars with SGLang 0.5.23's llguidance backend, where they were refused or ended the whole server.

- Where a grammar leaves one text only, llguidance tokenises that text. A text that spells a control token, such as
  ``<tool_call>``, became that token, which is no text to llguidance: its own choice broke the grammar.
- A grammar that breaks while an answer is written raised out of the scheduler; without a reasoning parser the answer
  ended there instead, as though it were whole. SGLang ends a request alone where it takes a token, so that is where it
  is told.
- With ``--reasoning-parser`` SGLang asks a backend for three functions to fall back on where a request has no grammar.
  This one has none of them, and every request with a grammar was refused. None is a fallback that it takes too.
"""

import contextlib
import re
from collections.abc import Callable
from typing import Any

_CONSTRAINED = "sglang.srt.constrained"
_FALLBACKS = ("allocate_vocab_mask", "move_vocab_mask", "apply_vocab_mask")


def register() -> None:
    """Hook into SGLang."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    backend = f"{_CONSTRAINED}.llguidance_backend"
    reasoner = f"{_CONSTRAINED}.reasoner_grammar_backend.ReasonerGrammarBackend"
    HookRegistry.register(f"{reasoner}._make_grammar_object", fill_in, HookType.BEFORE)
    HookRegistry.register(f"{backend}._create_llguidance_tokenizer", spell_out, HookType.AFTER)
    HookRegistry.register(f"{backend}.GuidanceGrammar.fill_vocab_mask", carry_on, HookType.AROUND)
    HookRegistry.register(f"{backend}.GuidanceGrammar.accept_token", refuse, HookType.AROUND)
    HookRegistry.register("sglang.srt.utils.common.build_server_info", announce, HookType.AFTER)


def fill_in(reasoner: Any, *args: Any, **kwargs: Any) -> None:
    """Give the wrapped backend the fallbacks that it lacks; runs before SGLang asks for them."""
    for name in _FALLBACKS:
        if not hasattr(reasoner.grammar_backend, name):
            setattr(reasoner.grammar_backend, name, None)


def spell_out(known: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
    """llguidance's tokenizer ``known``, but that text never becomes a control token; runs after it is made."""
    from llguidance import LLTokenizer, TokenizerWrapper

    wrapper = TokenizerWrapper(_TextTokenizer(known, tokenizer))
    return LLTokenizer(wrapper, n_vocab=known.vocab_size, eos_token=known.eos_tokens)


class _TextTokenizer:
    """What llguidance asks of a tokenizer, given its own and the model's."""

    bos_token_id = None

    def __init__(self, known: Any, tokenizer: Any) -> None:
        ids = range(known.vocab_size)
        self.eos_token_id = known.eos_token
        self.tokens = [known.decode_bytes([token]) for token in ids]
        self.special_token_ids = [token for token in ids if known.is_special_token(token)]
        control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._spelled = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        self._tokenize: Callable[[str], list[int]] = known.tokenize_str

    def __call__(self, text: str) -> list[int]:
        """Tokens of ``text``, where a control token that it spells is cut behind its first character."""
        tokens: list[int] = []
        while spelled := self._spelled.search(text):
            cut = spelled.start() + 1
            tokens += self._tokenize(text[:cut])
            text = text[cut:]
        return tokens + self._tokenize(text)


def carry_on(fill: Callable[..., None], grammar: Any, *args: Any, **kwargs: Any) -> None:
    """Fill in which tokens may come next; where the grammar breaks llguidance leaves the end token only."""
    with contextlib.suppress(ValueError):
        fill(grammar, *args, **kwargs)


def refuse(accept: Callable[..., None], grammar: Any, *args: Any, **kwargs: Any) -> None:
    """Take a token, unless the grammar is broken.

    Raises:
        ValueError: it is, at which SGLang ends the request with an error.
    """
    matcher = grammar.ll_matcher
    if not matcher.is_error():
        with contextlib.suppress(ValueError):
            accept(grammar, *args, **kwargs)
    if matcher.is_error():
        problem, _, _ = matcher.get_error().partition("\n")  # the parser's state and the grammar follow
        raise ValueError(problem)


def announce(info: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    """Tell our gateway, in ``/server_info``, that grammars may spell control tokens here."""
    info["grammars_may_spell_control_tokens"] = True
