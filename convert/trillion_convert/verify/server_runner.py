"""A running vLLM or SGLang server as one side of a comparison, by token ids over HTTP."""

import json
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trillion_convert.errors import RunError
from trillion_convert.verify.runner import Continuation, Request

TIMEOUT_SECONDS = 600.0
_AT_ONCE = 4
"""Requests in flight, so that the server batches them as it does in service."""


class ServerRunner(ABC):
    """What the two kinds of server have in common.

    Args:
        url: base URL, without ``/v1``.
        ends: tokens that end a continuation.

    Raises:
        RunError: nothing answers there as such a server does.
    """

    def __init__(self, url: str, ends: Sequence[int]) -> None:
        self._url = url.rstrip("/")
        self._ends = list(ends)
        self._workers = ThreadPoolExecutor(_AT_ONCE)

    def greedy(self, requests: Sequence[Request]) -> list[Continuation]:
        return list(self._workers.map(self._continue, requests))

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        return list(self._workers.map(self._score, sequences))

    def close(self) -> None:
        self._workers.shutdown()

    @abstractmethod
    def _continue(self, request: Request) -> Continuation: ...

    @abstractmethod
    def _score(self, sequence: tuple[int, ...]) -> list[float]: ...

    def _fetch(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer: GET, or POST when there is a body to send."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise RunError(f"{self._url}{path} refuses with {error.code}: {error.read()[:500].decode()}") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{self._url}{path} does not answer as a server of this kind does: {error}") from error


class VllmServer(ServerRunner):
    """``vllm serve``, by its completions with a prompt of token ids."""

    def __init__(self, url: str, ends: Sequence[int]) -> None:
        super().__init__(url, ends)
        self._model = self._fetch("/v1/models")["data"][0]["id"]

    def _continue(self, request: Request) -> Continuation:
        choice = self._complete(
            request.token_ids,
            max_tokens=request.max_tokens,
            logprobs=2,
            stop_token_ids=self._ends,
            ignore_eos=True,
            return_token_ids=True,
            return_tokens_as_token_ids=True,
        )
        given = choice["logprobs"]
        margins = tuple(_margin(list(top.values())) for top in given["top_logprobs"])
        return Continuation(tuple(choice["token_ids"]), margins, tuple(given["token_logprobs"]))

    def _score(self, sequence: tuple[int, ...]) -> list[float]:
        entries = self._complete(sequence, max_tokens=1, prompt_logprobs=0)["prompt_logprobs"]
        return [entry[str(token)]["logprob"] for token, entry in zip(sequence[1:], entries[1:], strict=True)]

    def _complete(self, token_ids: Sequence[int], **fields: Any) -> Any:
        body = {"model": self._model, "prompt": list(token_ids), "temperature": 0.0} | fields
        return self._fetch("/v1/completions", body)["choices"][0]


class SglangServer(ServerRunner):
    """An SGLang server, by its ``/generate``. End tokens of the model's own configuration end an answer as well."""

    def __init__(self, url: str, ends: Sequence[int]) -> None:
        super().__init__(url, ends)
        self._fetch("/server_info")

    def _continue(self, request: Request) -> Continuation:
        meta = self._generate(request.token_ids, request.max_tokens, top_logprobs_num=2)
        logprobs, tokens = zip(*((entry[0], entry[1]) for entry in meta["output_token_logprobs"]), strict=True)
        margins = tuple(_margin([logprob for logprob, *_ in top]) for top in meta["output_top_logprobs"])
        return Continuation(tokens, margins, logprobs)

    def _score(self, sequence: tuple[int, ...]) -> list[float]:
        entries = self._generate(sequence, 1, logprob_start_len=0)["input_token_logprobs"][1:]
        if [token for _, token, *_ in entries] != list(sequence[1:]):
            raise RunError(f"{self._url} scored other tokens than the {len(sequence) - 1} that it was sent")
        return [logprob for logprob, *_ in entries]

    def _generate(self, token_ids: Sequence[int], max_tokens: int, **fields: Any) -> Any:
        # It would ignore the stop tokens as well.
        eos = {"ignore_eos": not self._ends}
        sampling = {"max_new_tokens": max_tokens, "temperature": 0.0, "stop_token_ids": self._ends} | eos
        body = {"input_ids": list(token_ids), "sampling_params": sampling, "return_logprob": True} | fields
        return self._fetch("/generate", body)["meta_info"]


def _margin(logprobs: list[float]) -> float:
    first, second = sorted(logprobs, reverse=True)[:2]
    return first - second
