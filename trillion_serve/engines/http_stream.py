"""Reading an answer from an event stream: bytes to events, events to deltas."""

from abc import ABC, abstractmethod

from trillion_serve.engines.protocol import FinishReason, GenerateRequest, TokenDelta, TokenLogprob
from trillion_serve.errors import EngineError, EngineUnavailableError

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write."""

_MAX_FRAME_BYTES = 64 * 2**20


class FrameDecoder:
    """The payloads of the ``data:`` lines of an event stream that is cut anywhere.

    Both servers write an event's JSON on one line, so a line is an event. Comments and other fields are left out.
    """

    def __init__(self) -> None:
        self._rest = b""

    def decode(self, data: bytes) -> list[bytes]:
        """The payloads that are complete now.

        Raises:
            EngineUnavailableError: a line never ends.
        """
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_FRAME_BYTES:
            raise EngineUnavailableError(f"the engine sent an event of over {_MAX_FRAME_BYTES} bytes")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class Answer(ABC):
    """An answer that is coming in: what has come since the last ``take``.

    Attributes:
        finish_reason: set once the last token is here.
        begun: whether anything was taken.
        grammar: what the answer must spell.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self.finish_reason: FinishReason | None = None
        self.begun = False
        self.grammar = request.sampling.grammar
        self._prompt_tokens = len(request.prompt_token_ids)
        self._top = request.sampling.top_logprobs
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._cached_tokens = 0

    @abstractmethod
    def feed(self, payload: bytes) -> None:
        """Read the JSON of one event.

        Raises:
            msgspec.DecodeError: it is not what this server sends.
            EngineError: it reports an error.
        """

    @property
    def pending(self) -> bool:
        """Whether tokens wait to be taken."""
        return bool(self._tokens)

    def take(self) -> TokenDelta:
        """Everything that has come since the last call."""
        tokens, logprobs = tuple(self._tokens), tuple(self._logprobs)
        if self._top is not None and len(logprobs) != len(tokens):
            raise EngineError(f"the engine sent {len(logprobs)} log-probabilities for {len(tokens)} tokens")
        self.begun = True
        self._tokens.clear()
        self._logprobs.clear()
        return TokenDelta(
            token_ids=tokens,
            logprobs=None if self._top is None else logprobs,
            finish_reason=self.finish_reason,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
        )
