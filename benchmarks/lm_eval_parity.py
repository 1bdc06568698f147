"""The same score through the gateway as from Transformers, as lm-evaluation-harness sees both.

A small task is made of held-out problems of the demo, in four forms: a choice between answers by their
log-likelihoods, and an answer written after the rendered chat prompt, both over ``/v1/completions`` with token ids
and with text; and an answer with reasoning before it over ``/v1/chat/completions``. Each runs with the harness's
``local-completions`` or ``local-chat-completions`` against a server that this script starts, and with its own
``hf`` model on the same checkpoint, in float32 and greedy.

The harness lives in an environment of its own, beside PyTorch and Transformers:

    python -m venv lm-eval && lm-eval/bin/pip install 'lm-eval[hf,api]'
    python benchmarks/lm_eval_parity.py --lm-eval-python lm-eval/bin/python
    python benchmarks/lm_eval_parity.py --lm-eval-python lm-eval/bin/python --quick --json parity.json

It ends with status 1 when a score differs. Answers may differ where a model writes a think tag into one: the
completions endpoint shows it, the harness's own model hides it. Nothing is fetched from a hub.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trillion_serve.demo.server import ServerProcess
from trillion_serve.home import home

ROOT = Path(__file__).resolve().parent.parent
CHOICE, WRITTEN, CHAT = "heldout_choice", "heldout_written", "heldout_chat"
QUICK_PROBLEMS = 24
CHOICES = 4
MAX_LENGTH = 2048
HARNESS = "from trillion_model import register; register(); from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
"""The harness's own command, after telling Transformers our architectures."""

SERVER_OPTIONS = ["--dtype", "float32", "--kv-cache-memory", "0.25", "--max-num-batched-tokens", "256"]

_COMMON = {"dataset_path": "json", "test_split": "test", "target_delimiter": "", "num_fewshot": 0}
_WRITTEN = {
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [{"name": "answer", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
}
TASKS: dict[str, dict[str, Any]] = {
    CHOICE: {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    WRITTEN: {
        **_WRITTEN,
        "doc_to_text": "{{prompt}}",
        "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 48, "do_sample": False},
    },
    CHAT: {
        **_WRITTEN,
        "doc_to_text": "{{question}}",
        "generation_kwargs": {"until": ["<|never|>"], "max_gen_toks": 512, "do_sample": False},
    },
}
METRICS = {CHOICE: "acc,none", WRITTEN: "exact_match,answer", CHAT: "exact_match,answer"}


@dataclass(frozen=True)
class Way:
    """A way to ask the model.

    Attributes:
        name: for the table.
        model: the harness's name for it.
        arguments: the harness's arguments for that model.
        options: further options of the harness.
        tasks: what can be asked in this way.
    """

    name: str
    model: str
    arguments: dict[str, Any]
    tasks: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        task: what was asked.
        way: how.
        score: share of the problems that were right.
        reference: the same, by the harness's own model.
        same_answers: share of the problems that both answered alike.
        largest_difference: between the two log-likelihoods of a choice; None where there are none.
    """

    task: str
    way: str
    score: float
    reference: float
    same_answers: float
    largest_difference: float | None


def main(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint; the demo's unless given.")] = None,
    problems: Annotated[Path | None, typer.Option(help="Held-out problems; the demo's unless given.")] = None,
    lm_eval_python: Annotated[str, typer.Option(help="Python of the environment with the harness.")] = sys.executable,
    quick: Annotated[bool, typer.Option(help=f"Only {QUICK_PROBLEMS} problems.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Print the scores of both, and what differs between them.

    Example: python benchmarks/lm_eval_parity.py --lm-eval-python lm-eval/bin/python --quick
    """
    model = model or home() / "demo" / "hf"
    problems = problems or home() / "demo" / "data" / "heldout.jsonl"
    for path in (model, problems):
        if not path.exists():
            raise typer.BadParameter(f"{path} does not exist; `trillion-serve demo` makes it")
    check_harness(lm_eval_python)
    with tempfile.TemporaryDirectory() as name:
        rows = compare(model, problems, lm_eval_python, QUICK_PROBLEMS if quick else None, Path(name))
    show(rows)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    if any(row.score != row.reference for row in rows):
        raise typer.Exit(1)


def check_harness(python: str) -> None:
    """Say what to do where the harness is missing."""
    found = subprocess.run([python, "-c", "import lm_eval"], capture_output=True, env=environment(), check=False)
    if found.returncode:
        raise typer.BadParameter(
            f"{python} has no lm-evaluation-harness; make an environment of its own for it "
            "(`python -m venv lm-eval && lm-eval/bin/pip install 'lm-eval[hf,api]'`) and give its Python "
            "with --lm-eval-python"
        )


def environment() -> dict[str, str]:
    """The variables for the harness: our packages, and no hub."""
    path = os.pathsep.join([str(ROOT / "model"), str(ROOT)])
    return os.environ | {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OPENAI_API_KEY": "none",
    }


def compare(model: Path, problems: Path, python: str, most: int | None, work: Path) -> list[Row]:
    """Run every task in every way."""
    think_end = write_tasks(model, problems, most, work)
    reference = {"pretrained": str(model), "dtype": "float32"}
    thinking = {"enable_thinking": True, "think_end_token": think_end}
    chat = ("--apply_chat_template",)
    rows: list[Row] = []
    with (
        ServerProcess(model, 0, SERVER_OPTIONS, work / "server.log") as server,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        ways = [
            Way("hf", "hf", reference, (CHOICE, WRITTEN)),
            Way("hf", "hf", reference | thinking, (CHAT,), chat),
            *through_the_gateway(server.url, model),
        ]
        bar = progress.add_task("asking", total=len(ways))
        references: dict[str, Outcome] = {}
        for place, way in enumerate(ways):
            progress.update(bar, description=f"{way.name}: {', '.join(way.tasks)}")
            for task, outcome in run(python, way, work, work / f"out-{place}").items():
                if way.name == "hf":
                    references[task] = outcome
                else:
                    rows.append(outcome.against(references[task], task, way.name))
            progress.advance(bar)
    return rows


def through_the_gateway(url: str, model: Path) -> Iterator[Way]:
    """The ways through a server."""
    common = {"model": model.name, "num_concurrent": 4, "max_retries": 1, "max_length": MAX_LENGTH}
    completions = common | {
        "base_url": f"{url}/completions",
        "tokenizer": str(model),
        "tokenizer_backend": "huggingface",
    }
    for name, tokenized in (("completions, token ids", True), ("completions, text", False)):
        yield Way(name, "local-completions", completions | {"tokenized_requests": tokenized}, (CHOICE, WRITTEN))
    chat = common | {"base_url": f"{url}/chat/completions"}
    yield Way("chat completions", "local-chat-completions", chat, (CHAT,), ("--apply_chat_template",))


def write_tasks(model: Path, problems: Path, most: int | None, work: Path) -> int:
    """Write the tasks' files; the id of the tag that ends the reasoning."""
    import yaml
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [json.loads(line) for line in problems.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(asked)
    with (work / "problems.jsonl").open("w", encoding="utf-8") as file:
        for problem in asked[:most]:
            question = problem["messages"][0]["content"]
            prompt = tokenizer.apply_chat_template(
                problem["messages"][:1], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            row = {"question": question, "prompt": prompt, "answer": problem["answer"], **choices_of(problem, asked)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(work / "problems.jsonl")}, "cache_dir": str(work / "cache")}
        text = yaml.safe_dump({"task": name, **_COMMON, **task, "dataset_kwargs": files}, allow_unicode=True)
        (work / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tokenizer.convert_tokens_to_ids("</think>")


def choices_of(problem: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answer among answers to other problems of its kind."""
    alike = {
        other["answer"]
        for other in others
        if (other["skill"], other["language"]) == (problem["skill"], problem["language"])
    }
    dice = random.Random(problem["id"])
    wrong = sorted(alike - {problem["answer"]})
    choices = [problem["answer"], *dice.sample(wrong, min(CHOICES - 1, len(wrong)))]
    dice.shuffle(choices)
    return {"choices": choices, "label": choices.index(problem["answer"])}


@dataclass(frozen=True)
class Outcome:
    """What the harness wrote of one task: its score, and every answer by its problem."""

    score: float
    answers: dict[int, Any]

    def against(self, reference: "Outcome", task: str, way: str) -> Row:
        """This beside the reference."""
        alike = [self.answers[problem] == answer for problem, answer in reference.answers.items()]
        difference = None
        if task == CHOICE:
            pairs = [(self.answers[problem], answer) for problem, answer in reference.answers.items()]
            alike = [likeliest(ours) == likeliest(theirs) for ours, theirs in pairs]
            difference = max(
                abs(one - other) for ours, theirs in pairs for one, other in zip(ours, theirs, strict=True)
            )
        return Row(task, way, self.score, reference.score, sum(alike) / len(alike), difference)


def likeliest(loglikelihoods: Sequence[float]) -> int:
    """The choice that a model makes."""
    return max(range(len(loglikelihoods)), key=loglikelihoods.__getitem__)


def run(python: str, way: Way, work: Path, out: Path) -> dict[str, Outcome]:
    """Run the harness on all tasks of a way."""
    arguments = ",".join(f"{name}={value}" for name, value in way.arguments.items())
    command = [
        *(python, "-c", HARNESS, "--model", way.model, "--model_args", arguments, "--tasks", ",".join(way.tasks)),
        *("--include_path", str(work), "--output_path", str(out), "--log_samples", "--device", "cpu"),
        *("--batch_size", "8" if way.model == "hf" else "1", *way.options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[3:])} failed:\n{done.stderr[-4000:]}")
    (results,) = out.rglob("results_*.json")
    scores = json.loads(results.read_text(encoding="utf-8"))["results"]
    return {task: Outcome(scores[task][METRICS[task]], dict(answers_in(out, task))) for task in way.tasks}


def answers_in(out: Path, task: str) -> Iterator[tuple[int, Any]]:
    """Every answer that the harness logged: a text, or the log-likelihoods of the choices."""
    (file,) = out.rglob(f"samples_{task}_*.jsonl")
    for line in file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        answer = sample["filtered_resps"]
        yield sample["doc_id"], [float(each[0]) for each in answer] if task == CHOICE else answer[0]


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(title="lm-evaluation-harness: the gateway beside Transformers on the same checkpoint")
    for column in ("task", "way"):
        table.add_column(column, no_wrap=True)
    for column in ("score", "hf", "same answers", "log-likelihoods within"):
        table.add_column(column, justify="right")
    for row in rows:
        difference = "" if row.largest_difference is None else f"{row.largest_difference:.1e}"
        table.add_row(
            row.task, row.way, f"{row.score:.4f}", f"{row.reference:.4f}", f"{row.same_answers:.1%}", difference
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
