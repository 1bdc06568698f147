"""Asks a served model held-out problems through the real OpenAI client, and checks every answer exactly."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trillion_training.answers import Answer, check
from trillion_training.data.jsonl import ProblemRecord
from trillion_training.errors import EvaluationError


@dataclass(frozen=True)
class ApiRun:
    """What came back.

    Attributes:
        answers: in the order of the problems.
        completion_tokens: tokens that the server generated for them.
        seconds: wall-clock time of the whole run.
    """

    answers: list[Answer]
    completion_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second, over all requests in flight."""
        return self.completion_tokens / self.seconds


def ask_api(
    base_url: str,
    problems: Sequence[ProblemRecord],
    *,
    model: str | None = None,
    thinking: bool = True,
    max_tokens: int = 128,
    concurrency: int = 16,
) -> ApiRun:
    """Ask every problem at temperature 0.

    Args:
        base_url: the server's, with its ``/v1``.
        problems: what to ask.
        model: a model that the server lists; its first when None.
        thinking: whether the model reasons first.
        max_tokens: longest answer, reasoning included.
        concurrency: requests in flight at once.

    Raises:
        EvaluationError: the server cannot be reached or refuses a request.
    """
    from openai import APIError

    try:
        return asyncio.run(_ask_all(base_url, problems, model, thinking, max_tokens, concurrency))
    except APIError as error:
        raise EvaluationError(f"the server at {base_url} did not answer: {error}") from error


async def _ask_all(
    base_url: str,
    problems: Sequence[ProblemRecord],
    model: str | None,
    thinking: bool,
    max_tokens: int,
    concurrency: int,
) -> ApiRun:
    from openai import AsyncOpenAI

    places = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=base_url, api_key="none", timeout=300) as client:
        name = model or (await client.models.list()).data[0].id

        async def ask(problem: ProblemRecord) -> tuple[Answer, int]:
            async with places:
                completion = await client.chat.completions.create(
                    model=name,
                    messages=[{"role": "user", "content": problem.messages[0].content}],
                    temperature=0,
                    max_tokens=max_tokens,
                    extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
                )
            message = completion.choices[0].message
            reasoning = getattr(message, "reasoning", None) or ""
            tokens = completion.usage.completion_tokens if completion.usage else 0
            return check(problem, reasoning, message.content or ""), tokens

        began = time.monotonic()
        results = await asyncio.gather(*(ask(problem) for problem in problems))
        seconds = time.monotonic() - began
    return ApiRun([answer for answer, _ in results], sum(tokens for _, tokens in results), seconds)
