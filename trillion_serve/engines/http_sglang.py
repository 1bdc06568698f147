"""An SGLang server behind the engine protocol, by its native ``/generate`` endpoint.

A server that was started without ``--incremental-streaming-output`` repeats all tokens so far in every
event; both ways are read, the repeating one costs network and processor in the square of the answer's length.
It notices a closed connection only after seconds, so requests are stopped by ``/abort_request``.
A prompt with a token beyond the model's vocabulary ends the whole server, so such prompts are not sent.

How a grammar is enforced is up to the server. Start it with ``--grammar-backend llguidance
--constrained-json-disable-any-whitespace``, for the reasons that ``VllmOptions`` gives. Without our plugin that backend
ends the whole server at a grammar that leaves no choice but a control token's text, so no grammar that spells one is
sent to such a server.
"""

import json
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from trillion_serve.engines.grammar import check_grammar
from trillion_serve.engines.http import HttpEngine, check_scorable, error_of
from trillion_serve.engines.http_stream import LEAST_LOGPROB, Answer
from trillion_serve.engines.protocol import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerateRequest,
    Grammar,
    TokenDelta,
    TokenLogprob,
)
from trillion_serve.errors import EngineError, EngineStartError, EngineUnavailableError, RequestRefusedError

logger = logging.getLogger(__name__)

_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}

_Logprob = tuple[float | None, int, str | None]

_NO_TOKEN = 2**31 - 1
_TOKEN_RANGE = re.compile(r"keys in \[0, (\d+)\]")


class _Finish(msgspec.Struct):
    type: str
    message: str = "no reason given"
    status_code: int | None = None


class _Meta(msgspec.Struct):
    finish_reason: _Finish | None = None
    completion_tokens: int = 0
    cached_tokens: int = 0
    output_token_logprobs: list[_Logprob] = []
    output_top_logprobs: list[list[_Logprob] | None] = []
    output_token_logprobs_length: int = 0
    input_token_logprobs: list[_Logprob] = []
    input_top_logprobs: list[list[_Logprob] | None] = []


class _Error(msgspec.Struct):
    message: str = "no reason given"
    code: int | str | None = None


class _Event(msgspec.Struct):
    output_ids: list[int] = []
    meta_info: _Meta | None = None
    error: _Error | str | None = None


class _ServerInfo(msgspec.Struct):
    model_path: str
    version: str
    max_total_num_tokens: int
    served_model_name: str | None = None
    context_length: int | None = None
    dtype: str = "unknown"
    grammar_backend: str | None = None
    grammars_may_spell_control_tokens: bool = False


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Text(msgspec.Struct):
    text: str


class _Load(msgspec.Struct):
    num_running_reqs: int
    num_waiting_reqs: int
    token_usage: float


class _Loads(msgspec.Struct):
    loads: list[_Load]


class _ModelCard(msgspec.Struct):
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


_decode_event = msgspec.json.Decoder(_Event).decode


class SglangHttpEngine(HttpEngine):
    """An SGLang server.

    End tokens of the model's own configuration end an answer beside the request's stop tokens: SGLang can
    only ignore both.
    """

    generate_path = "/generate"

    _vocabulary: int | None = None
    _fears_control_tokens = False

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Continue the prompt, as every HTTP engine does.

        Raises:
            RequestRefusedError: also if the grammar spells a control token and the server would end at it.
        """
        if self._fears_control_tokens and request.sampling.grammar is not None:
            return self._generate_checked(request)
        return super().generate(request)

    async def _generate_checked(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        if grammar := check_grammar(request.sampling):
            await self._check_spelling(grammar)
        async with aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                yield delta

    async def score(self, token_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of the prompt's own tokens, from the second on."""
        check_scorable(token_ids)
        self._check_known(token_ids)
        body = {
            "input_ids": list(token_ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top_logprobs,
        }
        event = await self._fetch_as(_Event, self.generate_path, body, self._options.first_token_timeout)
        meta = event.meta_info or _Meta()
        tops = meta.input_top_logprobs or [None] * len(meta.input_token_logprobs)
        scored = [_token_logprob(entry, top) for entry, top in zip(meta.input_token_logprobs, tops, strict=True)][1:]
        if [entry.token_id for entry in scored] != list(token_ids[1:]):
            raise EngineError(f"{self._url} scored {len(scored)} of {len(token_ids) - 1} tokens")
        return scored

    async def stats(self) -> EngineStats:
        """What its schedulers say: sums over data-parallel ranks, and the mean share of their caches."""
        self._check_open()
        try:
            loads = (await self._fetch_as(_Loads, "/v1/loads?include=core")).loads
        except RequestRefusedError:
            loads = []
        if not loads:
            return self._own_stats()
        return EngineStats(
            kv_cache_usage=sum(load.token_usage for load in loads) / len(loads),
            running=sum(load.num_running_reqs for load in loads),
            waiting=sum(load.num_waiting_reqs for load in loads),
        )

    async def _fetch_info(self) -> EngineInfo:
        server = await self._fetch_as(_ServerInfo, "/server_info")
        name = server.served_model_name or server.model_path
        if self._options.model not in (None, name):
            raise EngineStartError(f"{self._url} serves {name}; expected {self._options.model}")
        context = server.context_length
        if context is None:
            cards = (await self._fetch_as(_ModelList, "/v1/models")).data
            context = cards[0].max_model_len if cards else None
        if context is None:
            raise EngineStartError(f"{self._url} does not say how long its context is; start it with --context-length")
        self._vocabulary = await self._fetch_vocabulary()
        self._fears_control_tokens = (
            server.grammar_backend == "llguidance" and not server.grammars_may_spell_control_tokens
        )
        return EngineInfo(
            engine=f"sglang {server.version}",
            model=server.model_path,
            context_length=context,
            kv_capacity_tokens=server.max_total_num_tokens,
            kv_bytes=None,
            dtype=server.dtype,
        )

    async def _fetch_vocabulary(self) -> int | None:
        """How many tokens the model knows. SGLang tells only where it refuses a bias on a token beyond them."""
        params = {"max_new_tokens": 1, "logit_bias": {_NO_TOKEN: 0.0}}
        try:
            await self._fetch(self.generate_path, {"input_ids": [0], "sampling_params": params})
        except RequestRefusedError as refusal:
            if told := _TOKEN_RANGE.search(str(refusal)):
                return int(told[1]) + 1
        logger.warning("%s does not say how many tokens it knows: a prompt with an unknown one may end it", self._url)
        return None

    def _check_known(self, token_ids: Sequence[int]) -> None:
        if self._vocabulary is None:
            return
        unknown = next((token for token in token_ids if not 0 <= token < self._vocabulary), None)
        if unknown is not None:
            raise RequestRefusedError(
                f"token id {unknown} is out of vocabulary: the model knows 0 to {self._vocabulary - 1}"
            )

    async def _check_spelling(self, grammar: Grammar) -> None:
        """Ask the server, which alone knows its control tokens. A spelling in disguise, ``[<]think>``, is not seen."""
        if grammar.kind == "json_schema":
            text = json.dumps(json.loads(grammar.value), ensure_ascii=False)
        else:
            text = re.sub(r"\\(\W)", r"\1", grammar.value)
        read = await self._fetch_as(_Tokens, "/tokenize", {"prompt": text, "add_special_tokens": False})
        shown, plain = [
            (await self._fetch_as(_Text, "/detokenize", {"tokens": read.tokens, "skip_special_tokens": skip})).text
            for skip in (False, True)
        ]
        if shown != plain:
            raise RequestRefusedError(
                f"the grammar ({grammar.kind}) spells a control token of the model, at which {self._url} would end; "
                "change it, or install trillion-serve beside SGLang there"
            )

    async def _stop_upstream(self, request_id: str) -> None:
        try:
            await self._fetch("/abort_request", {"rid": _rid(request_id)})
        except EngineError as error:
            logger.warning("request %s was left, but could not be stopped: %s", request_id, error)

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        self._check_known(request.prompt_token_ids)
        sampling = request.sampling
        grammar = check_grammar(sampling)
        params: dict[str, Any] = {
            "max_new_tokens": sampling.max_tokens,
            "min_new_tokens": sampling.min_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": sampling.repetition_penalty,
            "stop_token_ids": sampling.stop_token_ids,
            # It would ignore the stop tokens of the request as well.
            "ignore_eos": not sampling.stop_token_ids,
        }
        if grammar is not None:
            params[grammar.kind] = grammar.value
        if sampling.seed is not None:
            params["sampling_seed"] = sampling.seed
        if sampling.logit_bias:
            params["logit_bias"] = sampling.logit_bias
        body = {
            "input_ids": request.prompt_token_ids,
            "rid": _rid(request.request_id),
            "stream": True,
            "sampling_params": params,
        }
        if sampling.top_logprobs is not None:
            body |= {"return_logprob": True, "top_logprobs_num": sampling.top_logprobs}
        return body

    def _answer(self, request: GenerateRequest) -> Answer:
        return _SglangAnswer(request, self._url)


class _SglangAnswer(Answer):
    def __init__(self, request: GenerateRequest, url: str) -> None:
        super().__init__(request)
        self._url = url
        self._seen = 0

    def feed(self, payload: bytes) -> None:
        """Read an event, which holds the new tokens or all tokens so far."""
        event = _decode_event(payload)
        if event.error is not None:
            error = event.error if isinstance(event.error, _Error) else _Error(event.error)
            raise error_of(error.code if isinstance(error.code, int) else 500, error.message, self._url)
        meta = event.meta_info
        if meta is None:
            raise EngineUnavailableError(f"{self._url} sent an event without meta_info")
        finish = meta.finish_reason
        if finish is not None and finish.type not in _FINISH_REASONS:
            raise error_of(finish.status_code or 500, finish.message, self._url)
        tokens = event.output_ids[self._known(meta.completion_tokens, len(event.output_ids)) :]
        if self._top is not None:
            known = self._known(meta.output_token_logprobs_length, len(meta.output_token_logprobs))
            tops = meta.output_top_logprobs or [None] * len(meta.output_token_logprobs)
            rows = zip(meta.output_token_logprobs[known:], tops[known:], strict=True)
            self._logprobs += [_token_logprob(entry, top) for entry, top in rows]
        self._tokens += tokens
        self._seen += len(tokens)
        self._cached_tokens = meta.cached_tokens
        self.finish_reason = None if finish is None else _FINISH_REASONS[finish.type]

    def _known(self, total: int, sent: int) -> int:
        """How many of the entries that were sent, the last ones of ``total``, came before."""
        known = self._seen - max(total - sent, 0)
        if known < 0:
            raise EngineUnavailableError(f"{self._url} left out {-known} tokens")
        return known


def _rid(request_id: str) -> str:
    """The id of a request there, where aborting one id aborts all that it is a prefix of."""
    return f"{request_id}."


def _token_logprob(entry: _Logprob, top: Sequence[_Logprob] | None) -> TokenLogprob:
    return TokenLogprob(entry[1], _finite(entry[0]), tuple((token, _finite(value)) for value, token, _ in top or ()))


def _finite(logprob: float | None) -> float:
    return LEAST_LOGPROB if logprob is None else logprob
