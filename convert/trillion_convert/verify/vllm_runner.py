"""Published directories in vLLM, in a child process: its memory is freed at the end, its messages are kept away."""

import gc
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from trillion_convert.errors import RunError
from trillion_convert.verify.runner import Continuation, Request

KV_CACHE_BYTES = 512 * 2**20
MAX_BATCHED_TOKENS = 512
"""Small, so that long prompts are prefilled in chunks, as they are in service."""
_ENVIRONMENT = {
    # The engine runs in our child itself, not in a child of that.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

Result = TypeVar("Result")


class VllmProcess:
    """A process that engines run in, one after the other."""

    def __init__(self) -> None:
        descriptor, log = tempfile.mkstemp(prefix="trillion-convert-vllm-", suffix=".log")
        os.close(descriptor)
        self._log = Path(log)
        self._failed = False
        self._child = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_redirect, initargs=(log,))

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function there.

        Raises:
            RunError: it failed, or the process died; its output is kept, in a file that the message names.
        """
        try:
            return self._child.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            self._failed = True
            raise RunError(f"vLLM's process died; its output is in {self._log}") from error
        except Exception as error:
            self._failed = True
            problem = " ".join(str(error).split())
            raise RunError(f"vLLM failed: {problem}; its output is in {self._log}") from error

    def close(self) -> None:
        """End it."""
        self._child.shutdown()
        if not self._failed:
            self._log.unlink(missing_ok=True)


class VllmRunner:
    """A small vLLM engine: eager, with little KV cache and short steps.

    Args:
        directory: a published one.
        ends: tokens that end a continuation.
        dtype: name of the dtype to run in.
        max_model_len: tokens of the longest sequence.
        process: where to run it, in the place of an earlier engine; a process of its own when None.
        kv_cache_bytes: size of its KV cache.

    Raises:
        RunError: vLLM is missing or does not start.
    """

    def __init__(
        self,
        directory: Path,
        ends: Sequence[int],
        dtype: str,
        max_model_len: int,
        process: VllmProcess | None = None,
        kv_cache_bytes: int = KV_CACHE_BYTES,
    ) -> None:
        self._ends = list(ends)
        self._own = process is None
        self._process = process or VllmProcess()
        arguments = {
            "model": str(directory),
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_batched_tokens": MAX_BATCHED_TOKENS,
            "kv_cache_memory_bytes": kv_cache_bytes,
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
        }
        try:
            self._process.call(_start, arguments)
        except BaseException:
            self.close()
            raise

    def greedy(self, requests: Sequence[Request]) -> list[Continuation]:
        return self._process.call(_greedy, list(requests), self._ends)

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        return self._process.call(_score, list(sequences))

    def close(self) -> None:
        if self._own:
            self._process.close()


_engine: Any = None
"""The child process's engine."""


def _redirect(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(_ENVIRONMENT)


def _start(arguments: dict[str, Any]) -> None:
    global _engine
    from vllm import LLM

    _engine = None
    gc.collect()
    _engine = LLM(**arguments)


def _greedy(requests: list[Request], ends: list[int]) -> list[Continuation]:
    from vllm import SamplingParams

    outputs = _engine.generate(
        [{"prompt_token_ids": list(request.token_ids)} for request in requests],
        [
            SamplingParams(
                temperature=0.0,
                max_tokens=request.max_tokens,
                logprobs=2,
                stop_token_ids=ends,
                ignore_eos=True,
                detokenize=False,
            )
            for request in requests
        ],
        use_tqdm=False,
    )
    return [
        Continuation(
            tuple(answer.token_ids),
            tuple(map(_margin, answer.logprobs)),
            tuple(step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)),
        )
        for answer in (output.outputs[0] for output in outputs)
    ]


def _margin(step: dict[int, Any]) -> float:
    first, second = sorted((entry.logprob for entry in step.values()), reverse=True)[:2]
    return first - second


def _score(sequences: list[tuple[int, ...]]) -> list[list[float]]:
    from vllm import SamplingParams

    outputs = _engine.generate(
        [{"prompt_token_ids": list(sequence)} for sequence in sequences],
        SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False),
        use_tqdm=False,
    )
    return [
        [entry[token].logprob for token, entry in zip(sequence[1:], output.prompt_logprobs[1:], strict=True)]
        for sequence, output in zip(sequences, outputs, strict=True)
    ]
