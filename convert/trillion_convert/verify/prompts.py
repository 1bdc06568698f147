"""What both forms are asked: questions through the chat template, a user's own, and long runs of random tokens."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

QUESTIONS = (
    "삼백사십칠을 숫자로 쓰면?",
    "다음 수를 작은 것부터 나열해 줘: 9, 41, 17, 3",
    "대한민국의 수도에 대해 한 문장으로 설명해 줘.",
    "What is three hundred forty-seven in digits?",
    "Which is larger, 58 or 85?",
    "Write a haiku about the sea, 그리고 한국어로 옮겨 줘.",
)
_WINDOWS = (1, 3, 5)
"""Random prompts are this many windows long and a few tokens more, so that they end inside a window and a block."""
_BEYOND = 3
_NO_WINDOW = 64
"""What they are multiples of where the model has no window."""
_SEED = 20_261


@dataclass(frozen=True)
class Prompt:
    """A prompt by name, as token ids."""

    name: str
    token_ids: tuple[int, ...]


def collect(
    tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", file: Path | None, max_tokens: int
) -> list[Prompt]:
    """The built-in prompts and those of ``file``.

    Raises:
        PromptError: a line of the file is malformed, or a prompt leaves no room for ``max_tokens``.
    """
    room = config.max_position_embeddings - max_tokens
    if room < 1:
        raise PromptError(f"--max-tokens {max_tokens} leaves no room in a context of {config.max_position_embeddings}")
    prompts = [
        _chat(f"chat {i + 1}", [{"role": "user", "content": text}], tokenizer) for i, text in enumerate(QUESTIONS)
    ]
    prompts = [prompt for prompt in prompts if len(prompt.token_ids) <= room]
    window = getattr(config, "sliding_window", None) or _NO_WINDOW
    prompts += _random_prompts(len(tokenizer), window, room)
    for prompt in read_prompts(file, tokenizer) if file else []:
        if len(prompt.token_ids) > room:
            raise PromptError(f"{prompt.name} has {len(prompt.token_ids)} tokens, but the context has room for {room}")
        prompts.append(prompt)
    return prompts


def read_prompts(file: Path, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """Read a user's prompts: a line of text each, or in a ``.jsonl`` file an object with ``prompt`` or ``messages``.

    Raises:
        PromptError: the file cannot be read, a line is malformed, or there is none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{file} cannot be read: {error}") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            messages = _messages(line, f"{file}:{number}") if file.suffix == ".jsonl" else [_user(line)]
            prompts.append(_chat(f"{file.name}:{number}", messages, tokenizer))
    if not prompts:
        raise PromptError(f"{file} holds no prompt")
    return prompts


def _messages(line: str, where: str) -> list[dict[str, str]]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise PromptError(f"{where}: not JSON: {error}") from error
    if isinstance(fields, dict) and isinstance(fields.get("prompt"), str):
        return [_user(fields["prompt"])]
    if isinstance(fields, dict) and isinstance(fields.get("messages"), list) and fields["messages"]:
        return fields["messages"]
    raise PromptError(f'{where}: expected an object with "prompt", a text, or "messages", a list')


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _chat(name: str, messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template raises whatever its Jinja code does
        raise PromptError(f"{name}: the chat template refuses it: {error}") from error
    return Prompt(name, tuple(tokenizer.encode(text, add_special_tokens=False)))


def _random_prompts(vocabulary: int, window: int, room: int) -> list[Prompt]:
    source = random.Random(_SEED)
    lengths = dict.fromkeys(min(windows * window + _BEYOND, room) for windows in _WINDOWS)
    return [
        # Without the last token, which SGLang reads as the first in a prompt.
        Prompt(f"random {length}", tuple(source.randrange(vocabulary - 1) for _ in range(length)))
        for length in lengths
    ]
