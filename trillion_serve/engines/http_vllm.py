"""A vLLM server (``vllm serve``) behind the engine protocol, by its completions endpoint.

Token ids go in as ``prompt`` and come back by ``return_token_ids``. Cached tokens are reported only by a
server that was started with ``--enable-prompt-tokens-details``. Closing the connection aborts a request.

How a grammar is enforced is up to the server. Start it with ``--structured-outputs-config '{"backend": "guidance",
"disable_any_whitespace": true, "enable_in_reasoning": true}'``. ``VllmOptions`` tells why; without the last of these
a server with a reasoning parser lets anything pass before ``</think>``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from trillion_serve.engines.grammar import VLLM_FIELDS, check_grammar
from trillion_serve.engines.http import HttpEngine, check_scorable, error_of
from trillion_serve.engines.http_stream import LEAST_LOGPROB, Answer
from trillion_serve.engines.protocol import EngineInfo, EngineStats, FinishReason, GenerateRequest, TokenLogprob
from trillion_serve.errors import EngineError, EngineStartError, EngineUnavailableError, RequestRefusedError

_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "stop"}
_ID_PREFIX = len("token_id:")


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _PromptDetails | None = None


class _Error(msgspec.Struct):
    message: str = "no reason given"
    code: int | str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


class _PromptLogprob(msgspec.Struct):
    logprob: float | None
    rank: int | None = None


class _ScoredChoice(msgspec.Struct):
    prompt_logprobs: list[dict[int, _PromptLogprob] | None]


class _Scored(msgspec.Struct):
    choices: list[_ScoredChoice]


class _ModelCard(msgspec.Struct):
    id: str
    root: str | None = None
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class _Version(msgspec.Struct):
    version: str


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class VllmHttpEngine(HttpEngine):
    """A vLLM server."""

    generate_path = "/v1/completions"

    async def score(self, token_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of the prompt's own tokens, from the second on."""
        check_scorable(token_ids)
        body = {
            "model": self._served_name,
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": top_logprobs,
        }
        scored = await self._fetch_as(_Scored, self.generate_path, body, self._options.first_token_timeout)
        entries = scored.choices[0].prompt_logprobs[1:] if scored.choices else []
        if len(entries) != len(token_ids) - 1:
            raise EngineError(f"{self._url} scored {len(entries)} of {len(token_ids) - 1} tokens")
        rows = zip(token_ids[1:], entries, strict=True)
        return [_scored_token(token, entry or {}, top_logprobs) for token, entry in rows]

    async def stats(self) -> EngineStats:
        """What the server's metrics say: sums over its data-parallel engines, and the mean share of their caches."""
        self._check_open()
        metrics = await self._metrics()
        usage = _gauges(metrics, "kv_cache_usage_perc")
        if not usage:
            return self._own_stats()
        return EngineStats(
            kv_cache_usage=sum(usage) / len(usage),
            running=int(sum(_gauges(metrics, "num_requests_running"))),
            waiting=int(sum(_gauges(metrics, "num_requests_waiting"))),
        )

    async def _fetch_info(self) -> EngineInfo:
        cards = (await self._fetch_as(_ModelList, "/v1/models")).data
        card = next((card for card in cards if self._options.model in (None, card.id)), None)
        # An adapter's card does not give the length, its base model's does.
        context = next((length for length in (c.max_model_len for c in (card, *cards) if c) if length), None)
        if card is None or context is None:
            names = ", ".join(card.id for card in cards) or "nothing"
            raise EngineStartError(f"{self._url} serves {names}; expected {self._options.model or 'a model of vLLM'}")
        self._served_name = card.id
        version = (await self._fetch_as(_Version, "/version")).version
        caches = _cache_config(await self._metrics())
        return EngineInfo(
            engine=f"vllm {version}",
            model=card.root or card.id,
            context_length=context,
            kv_capacity_tokens=sum(_capacity(cache) for cache in caches),
            kv_bytes=_kv_bytes(caches),
            dtype="unknown",
        )

    async def _metrics(self) -> str:
        """The server's metrics; nothing when it was started without them."""
        try:
            return (await self._fetch("/metrics")).decode()
        except RequestRefusedError:
            return ""

    async def _stop_upstream(self, request_id: str) -> None:
        """Nothing: the closed connection is enough."""

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        sampling = request.sampling
        grammar = check_grammar(sampling)
        body: dict[str, Any] = {
            "model": self._served_name,
            "prompt": request.prompt_token_ids,
            "request_id": request.request_id,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "max_tokens": sampling.max_tokens,
            "min_tokens": sampling.min_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": sampling.repetition_penalty,
            "stop_token_ids": sampling.stop_token_ids,
            # Otherwise the end tokens of the model's own configuration are added to ours. Under a grammar they
            # can come only where it is complete, and one of them is what vLLM then lets it end with.
            "ignore_eos": grammar is None,
        }
        if grammar is not None:
            body["structured_outputs"] = {VLLM_FIELDS[grammar.kind]: grammar.value}
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.logit_bias:
            body["logit_bias"] = sampling.logit_bias
        if sampling.top_logprobs is not None:
            body |= {"logprobs": sampling.top_logprobs, "return_tokens_as_token_ids": True}
        return body

    def _answer(self, request: GenerateRequest) -> Answer:
        return _VllmAnswer(request, self._url)


class _VllmAnswer(Answer):
    def __init__(self, request: GenerateRequest, url: str) -> None:
        super().__init__(request)
        self._url = url

    def feed(self, payload: bytes) -> None:
        """Read a completion chunk."""
        chunk = _decode_chunk(payload)
        if chunk.error is not None:
            raise _stream_error(chunk.error, self._url)
        if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
            self._cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens or 0
        for choice in chunk.choices:
            if choice.token_ids is None:
                raise EngineError(f"{self._url} returns text without token ids; it must be vLLM 0.32 or later")
            self._tokens += choice.token_ids
            if self._top is not None and choice.logprobs is not None:
                self._logprobs += _token_logprobs(choice.token_ids, choice.logprobs, self._top)
            if choice.finish_reason is not None:
                if choice.finish_reason not in _FINISH_REASONS:
                    raise EngineUnavailableError(f"{self._url} ended the answer with {choice.finish_reason!r}")
                self.finish_reason = _FINISH_REASONS[choice.finish_reason]


def _stream_error(error: _Error | str, url: str) -> EngineError:
    if isinstance(error, str):
        return EngineUnavailableError(f"{url}: {error}")
    return error_of(error.code if isinstance(error.code, int) else 500, error.message, url)


def _token_logprobs(tokens: Sequence[int], logprobs: _Logprobs, top: int) -> list[TokenLogprob]:
    rows = zip(tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    return [
        TokenLogprob(token, LEAST_LOGPROB if logprob is None else logprob, _best(entry or {}, top))
        for token, logprob, entry in rows
    ]


def _best(entry: Mapping[str, float], top: int) -> tuple[tuple[int, float], ...]:
    """The most probable alternatives; the token that was chosen comes first there, whatever its rank."""
    best = sorted(entry.items(), key=lambda item: -item[1])[:top]
    return tuple((int(name[_ID_PREFIX:]), logprob) for name, logprob in best)


def _scored_token(token: int, entry: Mapping[int, _PromptLogprob], top: int) -> TokenLogprob:
    def logprob(value: _PromptLogprob) -> float:
        return LEAST_LOGPROB if value.logprob is None else value.logprob

    if token not in entry:
        raise EngineError(f"the engine gave no log-probability for token {token} of the prompt")
    best = sorted(entry.items(), key=lambda item: item[1].rank or 0)[:top]
    return TokenLogprob(token, logprob(entry[token]), tuple((other, logprob(value)) for other, value in best))


def _gauges(metrics: str, name: str) -> list[float]:
    """The values of a gauge, one for each data-parallel engine."""
    return [float(value) for value in re.findall(rf"^vllm:{name}\{{.*\}} (\S+)", metrics, flags=re.MULTILINE)]


def _cache_config(metrics: str) -> list[dict[str, str]]:
    """The labels of ``vllm:cache_config_info``, once for each data-parallel engine."""
    lines = re.findall(r"^vllm:cache_config_info\{(.*)\}", metrics, flags=re.MULTILINE)
    return [dict(re.findall(r'(\w+)="([^"]*)"', line)) for line in lines]


def _capacity(cache: Mapping[str, str]) -> int:
    tokens = cache.get("kv_cache_size_tokens", "")
    if tokens.isdigit():
        return int(tokens)
    blocks, size = cache.get("num_gpu_blocks", ""), cache.get("block_size", "")
    return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else 0


def _kv_bytes(caches: Sequence[Mapping[str, str]]) -> int | None:
    sizes = [cache.get("kv_cache_memory_bytes", "") for cache in caches]
    return sum(map(int, sizes)) if sizes and all(size.isdigit() for size in sizes) else None
