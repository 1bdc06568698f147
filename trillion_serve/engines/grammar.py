"""What the adapters have in common about grammars: what is refused, and how an answer under one ends."""

from msgspec.structs import replace

from trillion_serve.engines.protocol import Grammar, SamplingParams, TokenDelta
from trillion_serve.errors import EngineError, RequestRefusedError

VLLM_FIELDS = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
"""vLLM's names for the kinds of grammar."""


def check_grammar(sampling: SamplingParams) -> Grammar | None:
    """The request's grammar, if it has one that may be sent to an engine.

    Raises:
        RequestRefusedError: the grammar is empty, or contradicts other parameters.
    """
    grammar = sampling.grammar
    if grammar is None:
        return None
    if not grammar.value:
        raise RequestRefusedError(f"the grammar ({grammar.kind}) is empty; leave it out for an answer in any form")
    if sampling.min_tokens:
        raise RequestRefusedError(
            f"min_tokens {sampling.min_tokens} cannot hold together with a grammar ({grammar.kind}), "
            "which says how long the answer is; leave one of them out"
        )
    return grammar


def broken_by(grammar: Grammar, begun: bool, told: str) -> EngineError:
    """The error for an answer in which the engine found no way on under its grammar.

    It is the request's fault and no other engine would do better. llguidance checks most of a grammar beforehand,
    but not that it leaves no choice but a text that spells a control token of the model, which is no text to it.

    Args:
        begun: whether a part of the answer was given away.
        told: what the engine said.
    """
    kind = EngineError if begun else RequestRefusedError
    return kind(f"the grammar ({grammar.kind}) cannot be followed, perhaps as it spells a control token: {told}")


def without_foreign_end(delta: TokenDelta, sampling: SamplingParams) -> TokenDelta:
    """The delta without the token that ended the grammar, when that is none of the request's stop tokens.

    Engines end a grammar with the model's own end token, whatever stop tokens a request brings.
    """
    if sampling.grammar is None or delta.finish_reason != "stop" or not delta.token_ids:
        return delta
    if delta.token_ids[-1] in sampling.stop_token_ids:
        return delta
    logprobs = None if delta.logprobs is None else delta.logprobs[:-1]
    return replace(delta, token_ids=delta.token_ids[:-1], logprobs=logprobs)
