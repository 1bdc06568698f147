"""One answer, from a rendered prompt to message deltas, the same whatever engine runs it.

An engine only continues token ids. What it knows nothing of is done here, by stopping its request and
continuing from the tokens so far with some of our own behind them (a prefix cache makes that cheap):

- a thinking budget ends the reasoning with a transition sentence and the closing tag;
- a part of ``max_tokens`` is kept for the answer, and an answer that ends empty is continued;
- a loop in the reasoning ends the reasoning, a loop in the answer ends the answer;
- a grammar binds after the reasoning, and parts of the content may be written for the model.

So an answer takes one request to the engine, and one more for each of these that happens.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from functools import lru_cache
from typing import Literal

from msgspec import Struct

from trillion_model.vaetki.chat_format import THINK_END
from trillion_serve.chat.decode import ChatDecoder, StopStrings
from trillion_serve.chat.loops import LoopConfig, LoopDetector
from trillion_serve.chat.message import NOTHING, MessageDelta
from trillion_serve.chat.render import Prompt
from trillion_serve.chat.thinking import ALL_OF_IT, Opening, ReasoningView
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.chat.tools import ToolUse
from trillion_serve.chat.view import Viewer
from trillion_serve.engines.protocol import Engine, GenerateRequest, Grammar, SamplingParams, TokenDelta, TokenLogprob
from trillion_serve.errors import EngineError

AnswerFinish = Literal["stop", "length", "tool_calls"]

_RESCUE_TOKENS = 32
"""Tokens that a model which ended without an answer gets to begin one, in which it may not end."""
_BANNED = -100.0


@dataclass(frozen=True, slots=True)
class Free:
    """A part of the content that the model writes as it likes, to its end token."""


@dataclass(frozen=True, slots=True)
class Constrained:
    """A part of the content that must follow a grammar."""

    grammar: Grammar


@dataclass(frozen=True, slots=True)
class Forced:
    """A part of the content that is written for the model. Control tokens in it count as such."""

    text: str


Segment = Free | Constrained | Forced


class Intervention(StrEnum):
    """What was done to an answer that the model would not have done by itself."""

    BUDGET = "thinking_budget"
    """The reasoning reached its budget, or the part of ``max_tokens`` that is kept for the answer, and was ended."""
    REASONING_LOOP = "reasoning_loop"
    """The reasoning repeated itself and was ended."""
    CONTENT_LOOP = "content_loop"
    """The answer repeated itself and was ended."""
    RESCUE = "empty_answer"
    """The model ended without an answer: it was made to go on, or the end of its reasoning is the answer."""


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What keeps an answer in bounds.

    Attributes:
        budget: most reasoning tokens that the model may write; None for no limit but ``reserve``.
        reserve: tokens of ``max_tokens`` that are kept for the content.
        transition: a sentence that closes reasoning which is cut short; may be empty.
        reasoning_loops: what counts as a loop in the reasoning; None looks for none.
        content_loops: what counts as a loop in content that follows no grammar; None looks for none.
    """

    budget: int | None = None
    reserve: int = 0
    transition: str = ""
    reasoning_loops: LoopConfig | None = None
    content_loops: LoopConfig | None = None


class AnswerRequest(Struct, frozen=True):
    """An answer to be generated.

    Attributes:
        id: unique among the answers under way.
        sampling: of the whole answer; ``max_tokens`` counts reasoning and forced tokens as well.
        stop: strings that end the content.
        view: what is sent of the reasoning.
        content: the parts that the content is made of.
        tools: the calls that are read out of the content; None leaves it as it is.
    """

    id: str
    prompt: Prompt
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    limits: AnswerLimits = AnswerLimits()
    view: ReasoningView = ALL_OF_IT
    content: tuple[Segment, ...] = (Free(),)
    tools: ToolUse | None = None


class AnswerDelta(Struct, frozen=True):
    """What a few tokens add to an answer. Counts are totals so far.

    Attributes:
        logprobs: of the tokens that the model chose, the one that ended the answer left out, and those of reasoning
            that is not sent.
        finish_reason: on the last delta only.
        tokens: tokens of the answer, those of reasoning and those forced among them.
        reasoning_tokens: how many of them were reasoning, its closing tag included.
        cached_tokens: tokens of the prompt that the engine's prefix cache held.
        interventions: what has been done to the answer so far, in order.
    """

    message: MessageDelta
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: AnswerFinish | None = None
    tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    interventions: tuple[Intervention, ...] = ()


def reasoning_room(tokenizer: ChatTokenizer, limits: AnswerLimits, max_tokens: int) -> int:
    """Most tokens of reasoning that leave room for its end and for the content; below 1 there is room for none."""
    return max_tokens - limits.reserve - _closing_length(tokenizer, limits.transition)


async def answer(engine: Engine, tokenizer: ChatTokenizer, request: AnswerRequest) -> AsyncGenerator[AnswerDelta, None]:
    """Generate an answer; closing the generator aborts it in the engine.

    Raises:
        EngineError: what the engine raises, or it ended without saying why.
    """
    run = _Run(tokenizer, request)
    while (part := run.next_part()) is not None:
        async with aclosing(engine.generate(part)) as deltas:
            async for delta in deltas:
                if run.read(delta):
                    break
                if not run.peeking:
                    yield run.take()
            else:
                raise EngineError(f"the engine ended request {part.request_id} before its answer was complete")
        run.end_part()
    yield run.finish()


class _Ending(Enum):
    """Why a request to the engine is over."""

    END = "the model wrote an end token, or completed the grammar"
    LENGTH = "no token is left of max_tokens"
    STOPPED = "a stop string or a stop token of the client's came"
    PAUSED = "a stop token of the client's came in the reasoning, where it does not count"
    CLOSED = "the reasoning is closed, and what follows is not the model's to choose"
    DIRECT = "the model begins without reasoning, and what it begins is not the model's to choose"
    ANSWERED = "an answer that was empty no longer is"
    BUDGET = "the reasoning reached its cap"
    LOOP = "the model repeats itself"


class _Run:
    """An answer that is being generated, in parts: each is one request to the engine.

    Attributes:
        peeking: the model may think before content that is not free, and has not shown yet whether it will.
    """

    def __init__(self, tokenizer: ChatTokenizer, request: AnswerRequest) -> None:
        self._tokenizer = tokenizer
        self._request = request
        self._segments = deque(request.content)
        self._free = not any(isinstance(segment, Constrained) for segment in request.content)
        self._decoder = self._decoder_for(request.prompt)
        self._viewer = Viewer(request.view)
        most = request.sampling.max_tokens
        room = reasoning_room(tokenizer, request.limits, most)
        # Reasoning that there is no room to close may as well go on.
        self._room = room if room > 0 else most
        self._cap = self._room if request.limits.budget is None else min(self._room, request.limits.budget)
        self._stop_ids = frozenset(request.sampling.stop_token_ids)
        self._marks = self._stop_ids | tokenizer.mark_ids
        self._part = -1
        self._ending = _Ending.END
        self._done = False
        self._rescues = self._rescued = False
        self._interventions: tuple[Intervention, ...] = ()
        self._tokens: list[int] = []
        self._content_start = 0
        self._count = 0
        self._reasoning_count = 0
        self._cached_tokens = 0
        self._reasoning: list[str] = []
        self._answered = self._called_tools = self._flushed = False
        self._unsent = NOTHING
        self._unsent_logprobs: list[TokenLogprob] = []
        self.peeking = self._decoder.undecided and not self._runs_on and room > 0
        self._watch_for_loops()

    def next_part(self) -> GenerateRequest | None:
        """What to ask the engine for next; None when the answer is complete."""
        while not self._done:
            if self._thinks:
                return self._ask(self._reasoning_sampling())
            if not self._segments:
                return self._rescue() if self._may_rescue() else None
            match self._segments[0]:
                case Forced(text):
                    self._segments.popleft()
                    self._force(text)
                case Constrained(grammar):
                    return self._ask(replace(self._request.sampling, grammar=grammar, min_tokens=0))
                case Free():
                    return self._ask(self._request.sampling)
        return None

    def read(self, delta: TokenDelta) -> bool:
        """Take in what the engine gave; true when its request is over, or has to be."""
        if self._part == 0:
            self._cached_tokens = delta.cached_tokens
        tokens = delta.token_ids
        marks = [at for at, token in enumerate(tokens) if token in self._marks]
        marks.append(len(tokens))
        at, ending = 0, None
        while at < len(tokens) and ending is None:
            run = tokens[at : marks[bisect_left(marks, at)]] if self._decoder.reads_runs else ()
            ends, seen = self._ends(tokens[at]), self._logprobs_seen
            if run and self._may_read(run):
                read, ending = self._read_run(run)
            else:
                read, ending = 1, self._read_token(tokens[at])
            if seen and not self._logprobs_seen:
                # What was read before was the tag that opened the reasoning.
                seen, self._unsent_logprobs = False, []
            if delta.logprobs is not None and seen and not ends:
                self._unsent_logprobs += delta.logprobs[at : at + read]
            at += read
        if ending is None and delta.finish_reason is not None:
            ending = _Ending.LENGTH if delta.finish_reason == "length" else _Ending.END
        if ending is not None:
            self._ending = ending
        return ending is not None

    def end_part(self) -> None:
        """Settle what follows from how the engine's request ended."""
        if self.peeking and (self._decoder.undecided or self._ending is _Ending.DIRECT):
            self._begin_again()
            return
        match self._ending:
            case _Ending.LENGTH | _Ending.STOPPED:
                self._done = True
            case _Ending.BUDGET:
                self._close_reasoning(Intervention.BUDGET, self._request.limits.transition)
            case _Ending.LOOP if self._decoder.reasoning:
                self._close_reasoning(Intervention.REASONING_LOOP, self._request.limits.transition)
            case _Ending.LOOP:
                self._intervene(Intervention.CONTENT_LOOP)
                self._segments.clear()
            case _Ending.END if self._decoder.reasoning:
                self._close_reasoning(Intervention.RESCUE, "")
            case _Ending.END if self._segments:
                self._segments.popleft()
            case _Ending.CLOSED:
                self._begin_content()
            case _Ending.ANSWERED:
                self._segments.append(Free())

    def take(self, finish_reason: AnswerFinish | None = None) -> AnswerDelta:
        """What has come since the last delta."""
        message, logprobs = self._unsent, tuple(self._unsent_logprobs)
        if self._decoder.undecided and not self._request.view.returned and finish_reason is None:
            logprobs = ()
        else:
            self._unsent_logprobs = []
        self._unsent = NOTHING
        thinks = self._decoder.reasoning or self._decoder.undecided
        return AnswerDelta(
            message=self._viewer.show(message, thinks=thinks, last=finish_reason is not None),
            logprobs=logprobs,
            finish_reason=finish_reason,
            tokens=self._count,
            reasoning_tokens=self._reasoning_count,
            cached_tokens=self._cached_tokens,
            interventions=self._interventions,
        )

    def finish(self) -> AnswerDelta:
        """The last delta."""
        self._flush()
        if self._empty and self._free and self._ending is not _Ending.STOPPED:
            self._answer_with_reasoning()
        if self._ending is _Ending.LENGTH:
            return self.take("length")
        return self.take("tool_calls" if self._called_tools else "stop")

    @property
    def _runs_on(self) -> bool:
        """Whether the model may write on as it likes when its reasoning is over."""
        return not self._segments or isinstance(self._segments[0], Free)

    @property
    def _thinks(self) -> bool:
        """Whether what comes next is reasoning, or could be."""
        return self._decoder.reasoning or self.peeking

    @property
    def _logprobs_seen(self) -> bool:
        """Whether the client sees the log-probabilities of what comes next."""
        return self._request.view.returned or not self._decoder.reasoning

    @property
    def _empty(self) -> bool:
        return not self._answered and not self._called_tools

    def _ends(self, token: int) -> bool:
        """Whether a token ends what is being written. The client's own do not end reasoning."""
        return token in self._stop_ids and (not self._decoder.reasoning or token in self._tokenizer.end_ids)

    def _ask(self, sampling: SamplingParams) -> GenerateRequest | None:
        """A request to go on from the tokens so far; None, and the end of the answer, if no token is left."""
        self._drop_end()
        left = sampling.max_tokens - self._count
        if left < 1:
            self._ending, self._done = _Ending.LENGTH, True
            return None
        self._part += 1
        least = max(0, min(sampling.min_tokens - self._count, left))
        return GenerateRequest(
            f"{self._request.id}-{self._part}",
            (*self._request.prompt.token_ids, *self._tokens),
            replace(sampling, max_tokens=left, min_tokens=least),
        )

    def _reasoning_sampling(self) -> SamplingParams:
        sampling = self._request.sampling
        if self._runs_on or self._tokenizer.think_end_id is None:
            return sampling
        return replace(sampling, stop_token_ids=(*sampling.stop_token_ids, self._tokenizer.think_end_id))

    def _may_read(self, run: Sequence[int]) -> bool:
        """Whether nothing but a loop would end while these tokens are read one by one, none of which is a mark."""
        if self._rescues or self.peeking:
            return False
        if not self._decoder.reasoning:
            return True
        return self._count + len(run) < self._room and self._reasoning_count + len(run) < self._cap

    def _read_run(self, run: Sequence[int]) -> tuple[int, _Ending | None]:
        """Read tokens together, up to a loop's end: how many were read, and whether that ends the request."""
        ending = None
        if self._loops is not None:
            for count, token in enumerate(run, start=1):
                if self._loops.feed(token):
                    run, ending = run[:count], _Ending.LOOP
                    break
        self._tokens += run
        self._count += len(run)
        if self._decoder.reasoning:
            self._reasoning_count += len(run)
        self._flushed = False
        message = self._decoder.decode_run(run)
        if message:
            self._add(message)
        return len(run), ending

    def _read_token(self, token: int) -> _Ending | None:
        reasoned, undecided = self._decoder.reasoning, self._decoder.undecided
        self._tokens.append(token)
        if token in self._stop_ids and not reasoned:
            self._count += 1
            return _Ending.END if token in self._tokenizer.end_ids else _Ending.STOPPED
        self._decode(token)
        if self._decoder.stopped:
            return _Ending.STOPPED
        if reasoned:
            return self._reasoning_ending(token)
        if undecided and not self._decoder.undecided:
            self._watch_for_loops()
            if self.peeking and not self._decoder.reasoning:
                return _Ending.DIRECT
            self.peeking = False
        if self._rescues and not self._empty:
            self._rescues = False
            return _Ending.ANSWERED
        return self._loop_ending(token)

    def _reasoning_ending(self, token: int) -> _Ending | None:
        if not self._decoder.reasoning:
            self._content_start = len(self._tokens)
            self._watch_for_loops()
            if token in self._stop_ids:
                return _Ending.STOPPED
            return None if self._runs_on else _Ending.CLOSED
        if token in self._stop_ids:
            return _Ending.END if token in self._tokenizer.end_ids else _Ending.PAUSED
        if self._reasoning_count >= self._cap or self._count >= self._room:
            return _Ending.BUDGET
        return self._loop_ending(token)

    def _loop_ending(self, token: int) -> _Ending | None:
        return _Ending.LOOP if self._loops is not None and self._loops.feed(token) else None

    def _close_reasoning(self, why: Intervention, transition: str) -> None:
        self._intervene(why)
        self._drop_end()
        unfinished = self._decoder.drop_unfinished()
        del self._tokens[len(self._tokens) - unfinished :]
        written = self._text(self._tokens[-4:])
        self._force(_closing(transition, newlines=len(written) - len(written.rstrip("\n"))))
        self._content_start = len(self._tokens)
        if not self._segments:
            self._segments.append(Free())
        self._watch_for_loops()

    def _begin_content(self) -> None:
        """Write the format's newlines behind the closing tag, in place of what the model put there with it."""
        size = 1
        while THINK_END not in (tail := self._text(self._tokens[-size:])) and size < len(self._tokens):
            size += 1
        kept, tag, _ = tail.partition(THINK_END)
        written = self._tokenizer.encode(f"{kept}{tag}\n\n")
        self._tokens[-size:] = written
        self._count += max(0, len(written) - size)
        if self._count > self._request.sampling.max_tokens:
            self._count, self._ending, self._done = self._request.sampling.max_tokens, _Ending.LENGTH, True
        self._content_start = len(self._tokens)
        self._unsent = MessageDelta(reasoning=self._unsent.reasoning)
        self._answered = self._called_tools = False
        self._read_on_as_content()

    def _begin_again(self) -> None:
        """Forget what the model began content with that is not its to choose."""
        self.peeking = False
        self._tokens, self._count = [], 0
        self._unsent, self._unsent_logprobs = NOTHING, []
        self._answered = self._called_tools = False
        self._read_on_as_content()

    def _read_on_as_content(self) -> None:
        prompt = self._request.prompt
        plan = replace(prompt.thinking, opening=Opening.CLOSED, newline_written=True)
        if self._tokens:
            plan = replace(plan, after_newline=True)
        self._decoder = self._decoder_for(Prompt((*prompt.token_ids[-8:], *self._tokens[-8:]), plan))

    def _may_rescue(self) -> bool:
        self._flush()
        return self._empty and self._free and not self._rescued

    def _rescue(self) -> GenerateRequest | None:
        """Let a model that ended without an answer begin one: it may not end, and not repeat what did not show."""
        self._intervene(Intervention.RESCUE)
        self._rescues = self._rescued = True
        sampling = self._request.sampling
        unseen = self._tokenizer.hidden_ids.union(self._tokens[self._content_start :])
        banned = dict.fromkeys(unseen.difference(self._stop_ids), _BANNED)
        self._watch_for_loops()
        return self._ask(
            replace(sampling, min_tokens=self._count + _RESCUE_TOKENS, logit_bias={**sampling.logit_bias, **banned})
        )

    def _answer_with_reasoning(self) -> None:
        """The last resort: what the model thought last."""
        cut = StopStrings(self._request.stop)
        paragraph = "".join(self._reasoning).strip().rpartition("\n\n")[2].strip()
        text = cut.decode(paragraph) + cut.flush()
        if text:
            self._intervene(Intervention.RESCUE)
            self._add(MessageDelta(content=text))

    def _drop_end(self) -> None:
        """Take back the token that ended what is going to be continued."""
        while self._tokens and self._tokens[-1] in self._stop_ids and self._tokens[-1] in self._tokenizer.end_ids:
            self._tokens.pop()

    def _force(self, text: str) -> None:
        """Write text for the model, if it fits; else the answer is over."""
        self._drop_end()
        tokens = self._tokenizer.encode(text)
        if self._count + len(tokens) > self._request.sampling.max_tokens:
            self._ending, self._done = _Ending.LENGTH, True
            return
        thought = len(self._reasoning)
        self._tokens += tokens
        for token in tokens:
            self._decode(token)
        del self._reasoning[thought:]
        if self._decoder.stopped:
            self._ending, self._done = _Ending.STOPPED, True

    def _flush(self) -> None:
        if not self._flushed:
            self._flushed = True
            self._add(self._decoder.flush())

    def _decode(self, token: int) -> None:
        self._count += 1
        self._flushed = False
        if self._decoder.reasoning:
            self._reasoning_count += 1
        message = self._decoder.decode((token,))
        if message:
            self._add(message)

    def _add(self, message: MessageDelta) -> None:
        self._unsent = self._unsent + message if self._unsent else message
        if message.reasoning:
            self._reasoning.append(message.reasoning)
        if not self._answered and message.content.strip():
            self._answered = True
        if message.tool_calls:
            self._called_tools = True

    def _intervene(self, intervention: Intervention) -> None:
        if intervention not in self._interventions:
            self._interventions += (intervention,)

    def _watch_for_loops(self) -> None:
        limits = self._request.limits
        thinks = self._decoder.reasoning or self._decoder.undecided
        config = limits.reasoning_loops if thinks else limits.content_loops if self._free else None
        self._loops = None if config is None else LoopDetector(config)

    def _decoder_for(self, prompt: Prompt) -> ChatDecoder:
        return ChatDecoder(self._tokenizer, prompt, self._request.stop, self._request.tools)

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.backend.decode(tokens, skip_special_tokens=False)


@lru_cache(maxsize=64)
def _closing_length(tokenizer: ChatTokenizer, transition: str) -> int:
    return len(tokenizer.encode(_closing(transition)))


def _closing(transition: str, newlines: int = 0) -> str:
    """What ends reasoning that is cut short, after so many newlines, in the chat format's own."""
    before = "\n\n" if transition else "\n"
    return before[newlines:] + (f"{transition}\n" if transition else "") + f"{THINK_END}\n\n"
