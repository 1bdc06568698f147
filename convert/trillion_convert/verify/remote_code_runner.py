"""Published directories in the modelling code that lies in them, in a child process that knows none of ours.

Transformers prefers a class that is registered for a model type to the directory's own, and ours are registered here.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from trillion_convert.checkpoint import Checkpoint
from trillion_convert.errors import RunError
from trillion_convert.verify.runner import Continuation, Request
from trillion_convert.verify.torch_runner import TorchModel

Result = TypeVar("Result")


class RemoteCodeRunner:
    """A directory that brings its modelling code.

    Args:
        checkpoint: a published directory whose ``config.json`` has an ``auto_map``.
        dtype: name of the dtype to run in.

    Raises:
        RunError: it has none, or it does not load.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        if "AutoModelForCausalLM" not in (getattr(checkpoint.architecture.config, "auto_map", None) or {}):
            raise RunError(
                f"{checkpoint.directory} has no modelling code of its own (auto_map in config.json); export it with "
                "--remote-code"
            )
        self._directory = str(checkpoint.directory)
        self._child = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            self._call(_load, self._directory, dtype, checkpoint.ends)
        except BaseException:
            self.close()
            raise

    def greedy(self, requests: Sequence[Request]) -> list[Continuation]:
        return self._call(_greedy, list(requests))

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        return self._call(_score, list(sequences))

    def close(self) -> None:
        self._child.shutdown()

    def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return self._child.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RunError(f"the process that ran the code of {self._directory} died") from error
        except Exception as error:  # the code is not ours and may raise anything
            raise RunError(f"the code of {self._directory} failed: {type(error).__name__}: {error}") from error


_model: TorchModel
"""The child process's model."""


def _load(directory: str, dtype: str, ends: list[int]) -> None:
    global _model
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), trust_remote_code=True, local_files_only=True
    )
    if type(model).__module__.startswith("trillion_model."):
        raise RunError(f"{directory} was loaded into the modelling code of trillion_model, not its own")
    _model = TorchModel(model, ends)


def _greedy(requests: list[Request]) -> list[Continuation]:
    return _model.greedy(requests)


def _score(sequences: list[tuple[int, ...]]) -> list[list[float]]:
    return _model.score(sequences)
