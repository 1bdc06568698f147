"""A plain continuation of a prompt: no template, no thinking, nothing written for the model."""

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

from trillion_serve.chat.answer import AnswerDelta, AnswerFinish, AnswerRequest
from trillion_serve.chat.decode import StopStrings
from trillion_serve.chat.message import MessageDelta
from trillion_serve.chat.render import Prompt
from trillion_serve.chat.text import SpaceAfterNewline, TextDecoder
from trillion_serve.chat.thinking import Opening, ThinkingPlan
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import Engine, GenerateRequest, TokenDelta
from trillion_serve.errors import EngineError

_CONTENT_ONLY = ThinkingPlan(Opening.CLOSED, after_newline=False, newline_written=False)


def raw_prompt(token_ids: tuple[int, ...]) -> Prompt:
    """A prompt whose continuation is all content."""
    return Prompt(token_ids, _CONTENT_ONLY)


class RawText:
    """Token ids to text, one at a time.

    Args:
        tokenizer: the model's.
        context: tokens that come before the first one.
        hidden_ids: tokens that do not show.
    """

    def __init__(self, tokenizer: ChatTokenizer, context: Sequence[int] = (), hidden_ids: Collection[int] = ()) -> None:
        self._text = TextDecoder(tokenizer.backend, context)
        self._hidden = frozenset(hidden_ids)
        self._spaces: SpaceAfterNewline | None = None
        if tokenizer.doubles_spaces:
            before = tokenizer.backend.decode(list(context[-4:]), skip_special_tokens=False)
            self._spaces = SpaceAfterNewline(after_newline=before.endswith(("\n", "\t")))

    def decode(self, token_id: int) -> str:
        """The text that this token completes."""
        return "" if token_id in self._hidden else self._read(self._text.decode(token_id))

    def flush(self) -> str:
        """What is left of a character that never became whole."""
        return self._read(self._text.flush())

    def _read(self, text: str) -> str:
        return text if self._spaces is None else self._spaces.decode(text)


async def continuation(
    engine: Engine, tokenizer: ChatTokenizer, request: AnswerRequest, *, hidden_ids: Collection[int]
) -> AsyncGenerator[AnswerDelta, None]:
    """Continue a prompt; closing the generator aborts it in the engine.

    Of the request, only the prompt, the sampling and the stop strings count. Unlike those of an answer, the
    log-probabilities have an entry for every token, the one that ended the text too.

    Args:
        engine: runs the model.
        tokenizer: the model's.
        request: what to continue.
        hidden_ids: tokens that do not show in the text. Those that end it never do.

    Raises:
        EngineError: what the engine raises, or it ended without saying why.
    """
    reader = _Reader(tokenizer, request, hidden_ids)
    asked = GenerateRequest(request.id, request.prompt.token_ids, request.sampling)
    async with aclosing(engine.generate(asked)) as deltas:
        async for delta in deltas:
            read = reader.read(delta)
            yield read
            if read.finish_reason is not None:
                return
    raise EngineError(f"the engine ended request {request.id} before its text was complete")


class _Reader:
    """Reads what an engine gives."""

    def __init__(self, tokenizer: ChatTokenizer, request: AnswerRequest, hidden_ids: Collection[int]) -> None:
        hidden = (*hidden_ids, *request.sampling.stop_token_ids)
        self._text = RawText(tokenizer, request.prompt.token_ids, hidden)
        self._stops = StopStrings(request.stop)
        self._tokens = 0

    def read(self, delta: TokenDelta) -> AnswerDelta:
        """What these tokens add, up to the one that completes a stop string."""
        text, read = "", 0
        for token in delta.token_ids:
            read += 1
            text += self._stops.decode(self._text.decode(token))
            if self._stops.found:
                break
        self._tokens += read
        finish_reason: AnswerFinish | None = "stop" if self._stops.found else delta.finish_reason
        if finish_reason is not None:
            text += self._stops.decode(self._text.flush()) + self._stops.flush()
            finish_reason = "stop" if self._stops.found else finish_reason
        return AnswerDelta(
            message=MessageDelta(content=text),
            logprobs=(delta.logprobs or ())[:read],
            finish_reason=finish_reason,
            tokens=self._tokens,
            cached_tokens=delta.cached_tokens,
        )
