"""What the gateway asks of an engine: token ids in, token ids out, and nothing about chat.

An engine knows no template, no stop string and no thinking. That keeps chat semantics in one place
(``trillion_serve.chat``) whatever runs the model, in this process or behind HTTP.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from msgspec import Struct

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must spell, from its first token to its end token.

    An answer that ``max_tokens`` cuts off is the beginning of what the grammar describes.

    Attributes:
        kind: what ``value`` is.
        value: the JSON text of a schema; a regular expression that the whole answer matches; a grammar in
            GBNF, whose first rule is called ``root``, or in llguidance's Lark, where it is called ``start``.
    """

    kind: Literal["json_schema", "regex", "ebnf"]
    value: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the next token. The defaults sample from the model's own distribution.

    Attributes:
        max_tokens: at most so many tokens are generated.
        temperature: 0 is greedy.
        top_k: 0 keeps every token.
        stop_token_ids: these tokens end the answer, and nothing else does but ``max_tokens`` and ``grammar``.
        top_logprobs: None for no log-probabilities, else the number of alternatives to each token.
        logit_bias: added to the logits of these token ids.
        grammar: what the answer must spell; where it is complete the answer ends, with a stop token or none.
            It says how long the answer is, so ``min_tokens`` must be 0.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt to continue. ``request_id`` is unique among the requests that an engine is running."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams


class TokenLogprob(Struct, frozen=True):
    """The log-probability of a token, and of the most probable ones at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenDelta(Struct, frozen=True):
    """The tokens that came since the last delta.

    Attributes:
        token_ids: new tokens, the stop token among them when one ended the answer.
        logprobs: one entry a token when they were asked for, else None.
        finish_reason: set on the last delta only.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of those the engine's prefix cache held.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs and how much it holds.

    Attributes:
        engine: the engine's name and version.
        model: what it was told to load.
        context_length: most tokens in a sequence, prompt and answer together.
        kv_capacity_tokens: tokens that fit in the KV cache, in sequences of ``context_length``.
        kv_bytes: memory of the KV cache in bytes, over all devices that hold a part of it; None if unknown.
        dtype: number format of weights and activations.
    """

    engine: str
    model: str
    context_length: int
    kv_capacity_tokens: int
    kv_bytes: int | None
    dtype: str


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing at one moment.

    Attributes:
        kv_cache_usage: share of the KV cache that requests hold, from 0 to 1; None if unknown.
        running: requests that it is working on.
        waiting: requests in its queue.
    """

    kv_cache_usage: float | None
    running: int
    waiting: int


class Engine(Protocol):
    """An engine that is running."""

    @property
    def info(self) -> EngineInfo:
        """What runs here; fixed for the life of the engine."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Continue the prompt. Closing the generator, or cancelling its consumer, aborts the request.

        Raises:
            EngineUnavailableError: the engine cannot be reached, or has stopped (EngineDeadError).
            RequestRefusedError: the engine cannot run this request, an invalid grammar included. It comes
                before the first token.
        """

    async def abort(self, request_id: str) -> None:
        """Stop a request and free what it holds. An unknown or finished request is no error."""

    async def score(self, token_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of ``token_ids[1:]``, each given all the tokens before it.

        Raises:
            EngineUnavailableError: the engine cannot be reached, or has stopped (EngineDeadError).
            RequestRefusedError: the sequence is empty or too long.
        """

    async def health(self) -> None:
        """Return when the engine can take requests.

        Raises:
            EngineUnavailableError: it cannot.
        """

    async def stats(self) -> EngineStats:
        """What it is doing. May cost a network request: ask once a second rather than once a request.

        Raises:
            EngineUnavailableError: the engine cannot be reached, or has stopped (EngineDeadError).
        """

    async def close(self) -> None:
        """Stop the engine and free its devices and processes. May be called twice."""
