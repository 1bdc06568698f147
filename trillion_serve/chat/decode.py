"""Generated token ids to a message: reasoning, content and tool calls, in one pass.

The result does not depend on how an engine groups its tokens, so a streamed answer is the same as one that is
not: tokens go through one by one where one could change what the next one means, and together where none can.
"""

from collections.abc import Iterable, Sequence

from trillion_model.vaetki.chat_format import THINK_END, THINK_START
from trillion_serve.chat.message import NOTHING, MessageDelta
from trillion_serve.chat.overlap import longest_overlap
from trillion_serve.chat.render import Prompt
from trillion_serve.chat.text import SpaceAfterNewline, TextDecoder
from trillion_serve.chat.thinking import Opening, ThinkingPlan
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.chat.tools import ToolCallDecoder, ToolUse


class ChatDecoder:
    """Reads one answer.

    Args:
        tokenizer: the model's.
        prompt: what the answer continues.
        stop: strings that end the content where the first of them begins. Reasoning is not searched, the text of
            tool calls is.
        tools: the calls to read out of the content; None leaves it as it is.

    Attributes:
        stopped: a stop string, or the last call that may be made, has ended the content; tokens after it are ignored.
        tokens: tokens read, up to the one that ended the content.
        reasoning_tokens: how many of them belong to the reasoning, its closing tag included.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, prompt: Prompt, stop: Sequence[str] = (), tools: ToolUse | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._text = TextDecoder(tokenizer.backend, prompt.token_ids)
        self._spaces = SpaceAfterNewline(after_newline=prompt.thinking.after_newline)
        self._splitter = ReasoningSplitter(
            prompt.thinking,
            start=THINK_START if tokenizer.think_start_id is None else None,
            end=THINK_END if tokenizer.think_end_id is None else None,
        )
        self._stops = StopStrings(stop)
        self._calls = None if tools is None else ToolCallDecoder(tools)
        self._searches = bool(stop) or tools is not None
        self.tokens = 0
        self.reasoning_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string, or the last call that may be made, has ended the content."""
        return self._stops.found or (self._calls is not None and self._calls.full)

    @property
    def reasoning(self) -> bool:
        """Whether the next token is reasoning."""
        return self._splitter.reasoning

    @property
    def undecided(self) -> bool:
        """Whether the model may still open a think block with its first word."""
        return self._splitter.undecided

    @property
    def reads_runs(self) -> bool:
        """Whether tokens that are no marks only add to the text that is being written, and nothing is searched for."""
        return self._splitter.settled and (self._splitter.reasoning or not self._searches)

    def decode_run(self, token_ids: Sequence[int]) -> MessageDelta:
        """What tokens add while ``reads_runs``, none of them a mark: the same as ``decode``, for less work."""
        self.tokens += len(token_ids)
        if self._splitter.reasoning:
            self.reasoning_tokens += len(token_ids)
        return self._splitter.text(self._read(self._text.decode_run(token_ids)))

    def drop_unfinished(self) -> int:
        """Forget the tokens of a character that is not whole yet; how many they were."""
        return self._text.drop_unfinished()

    def decode(self, token_ids: Iterable[int]) -> MessageDelta:
        """What these tokens add."""
        delta = NOTHING
        for token_id in token_ids:
            if self.stopped:
                break
            self.tokens += 1
            self.reasoning_tokens += self._splitter.reasoning
            delta += self._read_content(self._decode_one(token_id))
        return delta

    def flush(self) -> MessageDelta:
        """What was held back in case more would come. Call once, at the end."""
        delta = MessageDelta()
        if not self.stopped:
            delta += self._read_content(self._splitter.text(self._read(self._text.flush())) + self._splitter.flush())
        rest = self._stops.flush()
        if self._calls is None:
            return delta + MessageDelta(content=rest)
        return delta + self._calls.decode(rest) + self._calls.flush()

    def _decode_one(self, token_id: int) -> MessageDelta:
        if token_id in self._tokenizer.hidden_ids or token_id in self._tokenizer.end_ids:
            return NOTHING
        if token_id == self._tokenizer.think_start_id:
            return self._splitter.text(self._read(self._text.flush())) + self._splitter.tag(THINK_START)
        if token_id == self._tokenizer.think_end_id:
            return self._splitter.text(self._read(self._text.flush())) + self._splitter.tag(THINK_END)
        return self._splitter.text(self._read(self._text.decode(token_id)))

    def _read(self, text: str) -> str:
        return self._spaces.decode(text) if self._tokenizer.doubles_spaces else text

    def _read_content(self, delta: MessageDelta) -> MessageDelta:
        if self._calls is None and not self._stops.looking:
            return delta
        content = self._stops.decode(delta.content)
        if self._calls is None:
            return MessageDelta(delta.reasoning, content)
        return MessageDelta(delta.reasoning) + self._calls.decode(content)


class ReasoningSplitter:
    """Text and think tags to reasoning and content.

    The format's own newlines belong to neither: one after ``<think>``, one before ``</think>``, two after.

    Args:
        plan: how the answer begins.
        start, end: the tag to look for in the text, or None where tags come through ``tag``.
    """

    def __init__(self, plan: ThinkingPlan, *, start: str | None, end: str | None) -> None:
        self._start = start
        self._end = end
        self._opening = plan.opening
        self._held = ""
        self._newlines_to_drop = 0
        if plan.opening is not Opening.MODEL and not plan.newline_written:
            self._newlines_to_drop = 1 if plan.opening is Opening.PROMPT else 2

    @property
    def reasoning(self) -> bool:
        """Whether the next text is reasoning, or may turn out to open it."""
        return self._opening is Opening.PROMPT

    @property
    def undecided(self) -> bool:
        """Whether the model's first word, which may be the think tag, has not come yet."""
        return self._opening is Opening.MODEL

    @property
    def settled(self) -> bool:
        """Whether no text can change what the text after it is."""
        if self._opening is Opening.PROMPT:
            return self._end is None
        return self._opening is Opening.CLOSED and not self._held and not self._newlines_to_drop

    def text(self, text: str) -> MessageDelta:
        """Read a piece of text."""
        if self._opening is Opening.CLOSED and not self._held and not self._newlines_to_drop:
            return MessageDelta(content=text) if text else NOTHING
        self._held += text
        delta = NOTHING
        if self._opening is Opening.MODEL:
            self._decide()
        if self._opening is Opening.PROMPT:
            delta += self._read_reasoning()
        if self._opening is Opening.CLOSED:
            delta += self._read_content()
        return delta

    def tag(self, tag: str) -> MessageDelta:
        """Read a tag that came as a token of its own."""
        if self._opening is Opening.MODEL and tag == THINK_START:
            self._open()
            return MessageDelta()
        if self._opening is Opening.PROMPT and tag == THINK_END:
            return MessageDelta(reasoning=self._close().removesuffix("\n"))
        return self.text(tag)

    def flush(self) -> MessageDelta:
        """What was held back for a tag that did not come."""
        held, self._held = self._held, ""
        return MessageDelta(reasoning=held) if self.reasoning else MessageDelta(content=held)

    def _decide(self) -> None:
        """See whether the model's first word is the tag; leading whitespace waits for the answer."""
        word = self._held.lstrip()
        if self._start and word.startswith(self._start):
            self._open()
            self._held = word[len(self._start) :]
        elif word and not (self._start and self._start.startswith(word)):
            self._opening = Opening.CLOSED

    def _open(self) -> None:
        self._opening, self._held, self._newlines_to_drop = Opening.PROMPT, "", 1

    def _close(self) -> str:
        held, self._held = self._held, ""
        self._opening, self._newlines_to_drop = Opening.CLOSED, 2
        return held

    def _read_reasoning(self) -> MessageDelta:
        self._drop_newlines()
        if self._end and self._end in self._held:
            reasoning, _, rest = self._close().partition(self._end)
            self._held = rest
            return MessageDelta(reasoning=reasoning.removesuffix("\n"))
        closing = ("\n" + self._end, self._end) if self._end else ("\n",)
        shown = len(self._held) - longest_overlap(self._held, closing, whole=self._end is None)
        reasoning, self._held = self._held[:shown], self._held[shown:]
        return MessageDelta(reasoning=reasoning)

    def _read_content(self) -> MessageDelta:
        self._drop_newlines()
        content, self._held = self._held, ""
        return MessageDelta(content=content)

    def _drop_newlines(self) -> None:
        while self._newlines_to_drop and self._held.startswith("\n"):
            self._held = self._held[1:]
            self._newlines_to_drop -= 1
        if self._held:
            self._newlines_to_drop = 0


class StopStrings:
    """Cuts text where the first of some strings begins, wherever the pieces of text are cut.

    The string that is complete first wins, and of two that end together the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self.looking = bool(stops)
        self._held = ""
        self.found = False

    def decode(self, text: str) -> str:
        """The text that is certainly before a stop string."""
        if not self._stops or self.found:
            return "" if self.found else text
        held = self._held + text
        matches = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if matches:
            self.found, self._held = True, ""
            return held[: min(matches)[1]]
        shown = len(held) - longest_overlap(held, self._stops)
        self._held = held[shown:]
        return held[:shown]

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held
