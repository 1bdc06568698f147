"""Asking a served model over a real socket with the real client, and checking what it says."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.running_gateway import MODEL, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_training.cli import app
from trillion_training.data.jsonl import ProblemRecord, read_jsonl
from trillion_training.errors import EvaluationError
from trillion_training.evaluate_api import ask_api


@pytest.fixture
def gateway(tokenizer_folder: Path):
    with run_gateway(ChatTokenizer.load(str(tokenizer_folder)), context_length=512) as running:
        yield running


@pytest.fixture(scope="module")
def problems(demo: Path) -> list[ProblemRecord]:
    return list(read_jsonl(demo / "heldout.jsonl", ProblemRecord))[:6]


def test_reasoning_is_kept_apart_and_only_the_content_counts(gateway: Gateway, problems: list[ProblemRecord]) -> None:
    right, wrong = problems[0], problems[2]
    gateway.reply = f"{wrong.answer}\n</think>\n\n{right.answer}"
    run = ask_api(gateway.url, [right, wrong], model=MODEL)
    assert [answer.correct for answer in run.answers] == [True, False]
    assert {answer.reasoning for answer in run.answers} == {wrong.answer}
    assert run.completion_tokens > 0
    assert {asked.sampling.temperature for asked in gateway.requests} == {0}


def test_the_command_prints_a_table_and_writes_every_answer(gateway: Gateway, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = ["eval", "--url", gateway.url, "--data", str(demo / "heldout.jsonl"), "--limit", "4", "--json", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "all but *" in result.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["problems"] == len(report["answers"]) == 4
    assert report["tokens_per_second"] > 0


def test_a_server_that_is_not_there_is_named(problems: list[ProblemRecord]) -> None:
    with pytest.raises(EvaluationError, match=r"http://127\.0\.0\.1:9/v1 did not answer"):
        ask_api("http://127.0.0.1:9/v1", problems[:1], model=MODEL)


@pytest.mark.parametrize("given", [[], ["--model", "runs", "--url", "http://127.0.0.1:9/v1"]])
def test_a_model_or_a_url_is_needed_and_not_both(given: list[str], demo: Path) -> None:
    assert CliRunner().invoke(app, ["eval", "--data", str(demo / "heldout.jsonl"), *given]).exit_code == 2
