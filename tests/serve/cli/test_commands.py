"""The command as a user runs it: in a process of its own."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

COMMAND = [sys.executable, "-m", "trillion_serve.cli.main"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def url(tokenizer_dir: Path) -> Iterator[str]:
    """A server over the fake engine."""
    (tokenizer_dir / "config.json").write_text(json.dumps({"model_type": "llama"}))
    command = [*COMMAND, "serve", str(tokenizer_dir), "--engine", "fake", "--port", "0", "--served-model-name", "둘"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = next(found for line in server.stdout if (found := re.search(r"^Serving 둘 at (http://\S+)$", line)))
    yield found[1]
    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("command", [[], ["serve"], ["chat"], ["plan"]])
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    shown = run(*command, "--help")
    assert shown.returncode == 0
    assert not command or f"trillion-serve {command[0]} " in shown.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from trillion_serve.cli.main import app\n"
        "heavy = {'torch', 'vllm', 'transformers', 'openai', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_serve_answers_the_real_client(url: str) -> None:
    client = OpenAI(base_url=url, api_key="none")
    answer = client.chat.completions.create(model="둘", messages=[{"role": "user", "content": "하나"}])
    assert "가짜 답" in (answer.choices[0].message.content or "")
    assert answer.choices[0].message.reasoning == "I only count."  # type: ignore[attr-defined]
    assert httpx.get(url.replace("/v1", "/ready")).json() == {"status": "ready"}


def test_chat_through_a_pipe(url: str) -> None:
    lines = "안녕\n/think off\n안녕\n/wrong\n/clear\n안녕\n/exit\nnever read\n"
    done = run("chat", "--url", url, input=lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("가짜 답입니다.") == 3
    assert done.stdout.count("I only count.") == 1
    assert done.stdout.count("commands: ") == 1
    first, *_, last = re.findall(r"has (\d+) tokens", done.stdout)
    # Cleared, the last question is as short as the first; thinking off adds an end tag and two newlines.
    assert int(last) - int(first) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "nothing-of-this-name"], "no directory, no hub id"),
        (["serve", "vaetki-7b-a1b"], "a preset, which has no weights"),
        (["serve", "."], "without config.json"),
        (["chat"], "name either a MODEL"),
        (["plan", "vaetki-100b-a10b", "--memory", "80GiB"], "does not fit"),
        (["chat", "--url", "http://127.0.0.1:9/v1"], "no model answers at"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken(url: str, tokenizer_dir: Path) -> None:
    port = url.split(":")[2].removesuffix("/v1")
    done = run("serve", str(tokenizer_dir), "--engine", "fake", "--port", port)
    assert done.returncode == 1
    assert "choose another --port" in done.stderr
