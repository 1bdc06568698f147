"""A real SGLang server on this machine's CPU, as a process on the loopback."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from support.local_service import free_port

SHIMS = Path(__file__).with_name("sglang_cpu")
CHUNK = 64
"""Most tokens of a prompt that are read at once."""
POOL = 600
"""Tokens that the cache of global layers holds."""
CONTEXT = 512

_FLAGS = (
    "--host=127.0.0.1",
    "--device=cpu",
    "--dtype=float32",
    "--attention-backend=torch_native",
    "--sampling-backend=pytorch",
    "--grammar-backend=llguidance",
    "--constrained-json-disable-any-whitespace",
    "--disable-overlap-schedule",
    "--skip-server-warmup",
    "--page-size=1",
    f"--context-length={CONTEXT}",
    f"--max-total-tokens={POOL}",
    f"--chunked-prefill-size={CHUNK}",
    "--max-running-requests=8",
)
_OURS = ("--reasoning-parser=vaetki", "--tool-call-parser=vaetki")
"""What our plugin adds to SGLang's command line."""
_START_SECONDS = 240


@dataclass(frozen=True)
class Answer:
    """What came back for a prompt: new tokens, their log-probabilities, those of the prompt from its second token on,
    and how much of the prompt was in the cache."""

    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    cached_tokens: int


@dataclass
class SglangServer:
    """``python -m sglang.launch_server``, with the shims that a CPU needs.

    Args:
        directory: the model's.
        log: where its output goes.
        ours: whether it loads our plugin.
    """

    directory: Path
    log: Path
    ours: bool = True
    process: subprocess.Popen | None = field(default=None, init=False)
    url: str = field(default="", init=False)

    def start(self, more: Sequence[str] = ()) -> None:
        """Start it and return when it is healthy.

        Raises:
            RuntimeError: it does not come up; its log is in the message.
        """
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = self.launch([*more, f"--port={port}"])
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"SGLang did not come up:\n{self.log.read_text()[-6000:]}")
            time.sleep(0.5)

    def launch(self, flags: Sequence[str]) -> subprocess.Popen:
        """Start its process in a group of its own."""
        environment = os.environ | {
            "PYTHONPATH": str(SHIMS),
            "SGLANG_USE_CPU_ENGINE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "SGLANG_PLUGINS": "" if self.ours else "sglang_cpu",
        }
        flags = [*_FLAGS, *(_OURS if self.ours else ()), *flags]
        command = [sys.executable, "-m", "sglang.launch_server", f"--model-path={self.directory}", *flags]
        with self.log.open("w") as output:
            return subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def refusal(self, *flags: str) -> str:
        """What it prints when it is started with ``flags`` instead, and ends."""
        process = self.launch(flags)
        try:
            assert process.wait(_START_SECONDS) != 0
        finally:
            _kill_group(process)
        return self.log.read_text()

    def generate(
        self, prompts: list[list[int]], max_tokens: int, *, prompt_logprobs: bool = True, **sampling: Any
    ) -> list[Answer]:
        """Continue ``prompts`` together, greedily. Log-probabilities of a prompt keep it from being read from the
        cache."""
        body = {
            "input_ids": prompts,
            "sampling_params": {"max_new_tokens": max_tokens, "temperature": 0, "ignore_eos": True} | sampling,
            "return_logprob": True,
            "logprob_start_len": 0 if prompt_logprobs else -1,
        }
        response = httpx.post(f"{self.url}/generate", json=body, timeout=240)
        response.raise_for_status()
        return [_answer(told, prompt_logprobs) for told in response.json()]

    def kill(self) -> None:
        """Kill it with all its processes."""
        if self.process is not None:
            _kill_group(self.process)
            self.process = None

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answer(told: dict[str, Any], prompt_logprobs: bool) -> Answer:
    meta = told["meta_info"]
    prompt = [entry[0] for entry in meta["input_token_logprobs"][1:]] if prompt_logprobs else []
    assert [entry[1] for entry in meta["output_token_logprobs"]] == told["output_ids"]
    return Answer(
        told["output_ids"], [entry[0] for entry in meta["output_token_logprobs"]], prompt, meta["cached_tokens"]
    )
