"""vLLM in this process: ``AsyncLLM`` behind the engine protocol.

vLLM runs the model in processes of its own and talks to us over sockets; only its front half lives here. It
is imported when an engine starts, never before.
"""

import os
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from trillion_serve.engines.grammar import VLLM_FIELDS, broken_by, check_grammar, without_foreign_end
from trillion_serve.engines.protocol import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
)
from trillion_serve.engines.server_flags import STRUCTURED_OUTPUTS
from trillion_serve.errors import EngineDeadError, EngineError, EngineStartError, RequestRefusedError

if TYPE_CHECKING:
    from trillion_serve.engines.vllm_stats import LatestStats

_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "stop"}
_CPU_KV_GIB = 1.0


@dataclass(frozen=True)
class VllmOptions:
    """What to start vLLM with. None leaves the choice to vLLM, unless said otherwise.

    Grammars are enforced by llguidance (vLLM's name for it is "guidance"), and JSON comes without blank space.
    vLLM's own choice, xgrammar, leaves out of a schema what it does not know ("not", "uniqueItems", several
    "allOf", a length beside a pattern) and lets control tokens such as ``<think>`` into strings, where they are
    text to the grammar and nothing to the reader; llguidance keeps them out and refuses what it cannot enforce.
    "auto" picks by the first request and keeps to that. And where blank space may come between two values, it
    may come without end: small models lose themselves in it.

    Attributes:
        model: directory or hub id.
        tokenizer: directory or hub id of the tokenizer, when it does not lie with the model.
        max_model_len: most tokens in a sequence.
        dtype: "auto", "float32", "bfloat16" or "float16".
        kv_cache_memory: GiB of KV cache a device; None is 1 GiB on a CPU, and what is free on a GPU.
        max_num_batched_tokens: tokens in one step. Windowed layers reserve room for as many, so more of them
            means fewer tokens in the KV cache.
        load_format: "auto" reads the weights, "dummy" makes random ones.
        enforce_eager: no compilation and no CUDA graphs; None is on for a CPU, off for a GPU.
        extra: any other argument of vLLM's ``AsyncEngineArgs``, by its name there.
    """

    model: str
    tokenizer: str | None = None
    max_model_len: int | None = None
    dtype: str = "auto"
    kv_cache_memory: float | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_num_batched_tokens: int = 2048
    max_num_seqs: int | None = None
    load_format: str = "auto"
    enforce_eager: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def engine_args(self, *, on_cpu: bool) -> dict[str, Any]:
        """The keyword arguments for ``AsyncEngineArgs``."""
        kv_gib = self.kv_cache_memory
        if kv_gib is None and on_cpu:
            kv_gib = _CPU_KV_GIB
        chosen = {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "max_model_len": self.max_model_len,
            "dtype": self.dtype,
            "kv_cache_memory_bytes": None if kv_gib is None else int(kv_gib * 2**30),
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_num_seqs": self.max_num_seqs,
            "load_format": self.load_format,
            "enforce_eager": on_cpu if self.enforce_eager is None else self.enforce_eager,
            "structured_outputs_config": dict(STRUCTURED_OUTPUTS),
            "disable_log_stats": True,
            **self.extra,
        }
        return {name: value for name, value in chosen.items() if value is not None}


class VllmEngine:
    """A running vLLM. Use ``start``; the constructor takes an ``AsyncLLM`` that is up, and what keeps its figures."""

    def __init__(self, llm: Any, info: EngineInfo, stats: "LatestStats") -> None:
        self._llm = llm
        self._info = info
        self._stats = stats

    @classmethod
    async def start(cls, options: VllmOptions) -> "VllmEngine":
        """Load the model and return when the engine is ready; blocks the event loop meanwhile.

        Raises:
            EngineStartError: vLLM is missing, or did not start.
        """
        _import_vllm()
        return cls(*_launch(options))

    @property
    def info(self) -> EngineInfo:
        """What runs here."""
        return self._info

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Continue the prompt; closing the generator aborts the request in vLLM."""
        from vllm.inputs import tokens_input

        prompt = tokens_input(list(request.prompt_token_ids))
        params = _sampling_params(request.sampling)
        begun = False
        with _typed_errors():
            async with aclosing(self._running.generate(prompt, params, request.request_id)) as outputs:
                async for output in outputs:
                    if output.outputs[0].finish_reason == "error":
                        raise _failure(request, begun)
                    yield without_foreign_end(_delta(output, request), request.sampling)
                    begun = True

    async def abort(self, request_id: str) -> None:
        """Stop a request."""
        with _typed_errors():
            await self._running.abort(request_id)

    async def score(self, token_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenLogprob]:
        """Log-probabilities of the prompt's own tokens, from the second on."""
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = VllmSamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=top_logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = tokens_input(list(token_ids))
        scored: list[TokenLogprob] = []
        with _typed_errors():
            async with aclosing(self._running.generate(prompt, params, f"score-{uuid4()}")) as outputs:
                async for output in outputs:
                    entries = output.prompt_logprobs[1:]
                    pairs = zip(token_ids[1:], entries, strict=True)
                    scored = [_token_logprob(token, entry, top_logprobs) for token, entry in pairs]
        return scored

    async def health(self) -> None:
        """Return while vLLM's processes live."""
        with _typed_errors():
            await self._running.check_health()

    async def stats(self) -> EngineStats:
        """The figures of vLLM's last step."""
        await self.health()
        # No step follows when the last request is aborted, so nothing would tell that it is gone.
        idle = self._running.get_num_unfinished_requests() == 0
        return EngineStats(0.0, 0, 0) if idle else self._stats.read()

    async def close(self) -> None:
        """Stop vLLM's processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()

    @property
    def _running(self) -> Any:
        if self._llm is None:
            raise EngineDeadError("this engine was closed; start the server again")
        return self._llm


def _import_vllm() -> None:
    # Standard output belongs to the command that started us.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        import vllm.v1.engine.async_llm  # noqa: F401
    except ImportError as error:
        raise EngineStartError(
            f"vLLM cannot be imported ({error}); install trillion-serve with its extra 'cpu' or 'vllm'"
        ) from error


def _launch(options: VllmOptions) -> tuple[Any, EngineInfo, "LatestStats"]:
    """Start vLLM.

    Apart from ``_import_vllm``, whose frame and callers vLLM keeps alive in a traceback: an ``AsyncLLM`` among
    their locals would outlive the interpreter's shutdown, and fail in it.
    """
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    from trillion_serve.engines.vllm_stats import LatestStats

    try:
        args = AsyncEngineArgs(**options.engine_args(on_cpu=current_platform.is_cpu()))
        llm = AsyncLLM.from_engine_args(args, stat_loggers=[LatestStats])
    except Exception as error:
        raise EngineStartError(f"vLLM did not start {options.model}: {error}") from error
    config = llm.vllm_config
    kv_bytes = config.cache_config.kv_cache_memory_bytes
    info = EngineInfo(
        engine=f"vllm {vllm.__version__}",
        model=options.model,
        context_length=config.model_config.max_model_len,
        kv_capacity_tokens=config.cache_config.kv_cache_size_tokens or 0,
        kv_bytes=kv_bytes and kv_bytes * config.parallel_config.world_size,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
    )
    (stats,) = (logger for logger in llm.logger_manager.stat_loggers if isinstance(logger, LatestStats))
    return llm, info, stats


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Raise vLLM's errors as ours."""
    from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

    try:
        yield
    except VllmDeadError as error:
        raise EngineDeadError(f"vLLM has stopped, start the server again: {error}") from error
    except (VLLMClientError, GracefulHTTPError) as error:
        raise RequestRefusedError(f"vLLM refuses the request: {str(error).rstrip()}") from error
    except VLLMError as error:
        raise EngineError(f"vLLM failed on this request: {error.__cause__ or error}") from error


def _sampling_params(sampling: SamplingParams) -> Any:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    grammar = check_grammar(sampling)
    with _typed_errors():
        return VllmSamplingParams(
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            stop_token_ids=list(sampling.stop_token_ids),
            # Otherwise vLLM adds the end tokens of the model's own configuration to ours. Under a grammar they
            # can come only where it is complete, and one of them is what vLLM then lets it end with.
            ignore_eos=grammar is None,
            structured_outputs=grammar and StructuredOutputsParams(**{VLLM_FIELDS[grammar.kind]: grammar.value}),
            logprobs=sampling.top_logprobs,
            logit_bias=sampling.logit_bias or None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


def _failure(request: GenerateRequest, begun: bool) -> EngineError:
    told = f"vLLM failed on request {request.request_id}"
    grammar = request.sampling.grammar
    return EngineError(told) if grammar is None else broken_by(grammar, begun, told)


def _delta(output: Any, request: GenerateRequest) -> TokenDelta:
    answer = output.outputs[0]
    tokens = tuple(answer.token_ids)
    logprobs = None
    if request.sampling.top_logprobs is not None and answer.logprobs is not None:
        pairs = zip(tokens, answer.logprobs, strict=True)
        logprobs = tuple(_token_logprob(token, entry, request.sampling.top_logprobs) for token, entry in pairs)
    return TokenDelta(
        token_ids=tokens,
        logprobs=logprobs,
        finish_reason=_FINISH_REASONS.get(answer.finish_reason or ""),
        prompt_tokens=len(request.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
    )


def _token_logprob(token: int, entry: Mapping[int, Any], top: int) -> TokenLogprob:
    best = sorted(entry.items(), key=lambda item: item[1].rank or 0)[:top]
    return TokenLogprob(
        token_id=token,
        logprob=entry[token].logprob,
        top=tuple((alternative, value.logprob) for alternative, value in best),
    )
