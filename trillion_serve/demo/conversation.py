"""Questions to the served demo model, asked through the real OpenAI client."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from openai import OpenAI
from rich.console import Console

_MAX_TOKENS = 160


@dataclass(frozen=True)
class Exchange:
    """A question and what came back."""

    question: str
    thinking: bool
    reasoning: str
    answer: str

    def as_dict(self) -> dict[str, object]:
        """The fields, for JSON."""
        return asdict(self)


def sample_questions(problems: Path, per_language: int) -> list[str]:
    """The first questions of a held-out file in each language."""
    chosen: dict[str, list[str]] = {}
    with problems.open(encoding="utf-8") as lines:
        for line in lines:
            problem = json.loads(line)
            questions = chosen.setdefault(problem["language"], [])
            if len(questions) < per_language:
                questions.append(problem["messages"][0]["content"])
    return [question for questions in chosen.values() for question in questions]


def ask_aloud(client: OpenAI, model: str, question: str, console: Console, *, thinking: bool) -> Exchange:
    """Ask, and show reasoning (dimmed) and answer as they stream."""
    console.print(f"[bold]> {question}[/bold]" + ("" if thinking else "  (thinking off)"), highlight=False)
    said = {"reasoning": "", "content": ""}
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=_MAX_TOKENS,
        stream=True,
        extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
    )
    for chunk in stream:
        if not chunk.choices:
            continue
        for field, style in (("reasoning", "dim"), ("content", "green")):
            if text := getattr(chunk.choices[0].delta, field, None):
                if field == "content" and said["reasoning"] and not said["content"]:
                    console.print()
                said[field] += text
                console.print(text, style=style, end="", markup=False, highlight=False)
    console.print("\n")
    return Exchange(question, thinking, said["reasoning"], said["content"])
