"""The client's call that is being served: whose it is, and what it may still use.

It is found from anywhere below the middleware that starts it, so that no endpoint can forget to ask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.limits.rates import KeyRates
from trillion_serve.gateway.security.keys import ApiKey

_current: ContextVar["Call | None"] = ContextVar("call", default=None)


@dataclass
class Call:
    """One request of a client's.

    Attributes:
        key: whose it is; None where no keys are asked for.
        rates: what the key has used.
        most_prompt_tokens: longer prompts are refused; None for no limit but the context.
    """

    key: ApiKey | None
    rates: KeyRates
    most_prompt_tokens: int | None = None
    _prompts: set[tuple[int, ...]] = field(default_factory=set)
    # The first prompt of an answer, and the tokens that have been counted for it.
    _answers: dict[str | None, tuple[tuple[int, ...], int]] = field(default_factory=dict)

    @property
    def counts_tokens(self) -> bool:
        """Whether anybody wants to know how many tokens go through."""
        return self.most_prompt_tokens is not None or (self.key is not None and self.key.tokens_per_minute is not None)

    async def read(self, prompt: tuple[int, ...], answer_id: str | None = None) -> None:
        """Take on a prompt. Tokens count once: not again for another answer to the same prompt, nor for an answer
        that is continued.

        Args:
            prompt: token ids.
            answer_id: the same for all parts of one answer; None for what is not continued.

        Raises:
            ApiError: it is longer than prompts may be, or than what the key has left.
        """
        first, known = self._answers.get(answer_id, (prompt, 0))
        if prompt in self._prompts:
            known = len(prompt)
        elif prompt[: len(first)] != first:
            known = 0
        fresh = max(len(prompt) - known, 0)
        if self.most_prompt_tokens is not None and fresh > self.most_prompt_tokens:
            raise ApiError(
                f"the prompt has {fresh} tokens, and this server takes {self.most_prompt_tokens}; shorten it",
                code="prompt_too_long",
            )
        self._prompts.add(prompt)
        if answer_id is not None:
            self._answers[answer_id] = (first if known else prompt, len(prompt))
        if self.key is not None:
            await self.rates.take(self.key, "tokens", fresh)

    async def wrote(self, tokens: int, answer_id: str) -> None:
        """Count tokens that were generated."""
        first, known = self._answers[answer_id]
        self._answers[answer_id] = (first, known + tokens)
        if self.key is not None:
            await self.rates.spend(self.key, "tokens", tokens)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it the call that is being served here."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def current_call() -> Call | None:
    """The call that is being served; None outside of one."""
    return _current.get()
