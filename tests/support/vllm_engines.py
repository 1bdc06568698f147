"""Real vLLM engines for tests, in a process of their own so that they leave no trace in the tests' process.

:func:`run` is called there (``pool.submit(run, options, prompts)``); an engine is started once for each ``Options``
and kept.
"""

import functools
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How to start an engine; ``model`` is a directory."""

    model: str
    dtype: str = "float32"
    max_model_len: int = 256
    max_num_batched_tokens: int = 48
    max_num_seqs: int = 8
    block_size: int = 16
    kv_cache_mib: int = 64
    load_format: str = "auto"


@dataclass(frozen=True)
class Answer:
    """What came back for a prompt: new tokens, their log-probabilities, those of the prompt from its second token on,
    and how much of the prompt was in the cache."""

    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    cached_tokens: int


@dataclass(frozen=True)
class Group:
    """A cache group as the engine reports it."""

    spec: str
    window: int | None
    bytes_per_token: float
    layers: list[str]


@dataclass(frozen=True)
class Report:
    """What an engine says of itself."""

    groups: list[Group]
    capacity: int
    blocks: int
    messages: list[str]


def pool() -> ProcessPoolExecutor:
    """A process that engines may be started in."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_set_up)


def run(options: Options, prompts: list[list[int]], max_tokens: int, prompt_logprobs: bool = True) -> list[Answer]:
    """Continue ``prompts`` together, greedily. Log-probabilities of a prompt keep it from being read from the cache."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=0,
        logprobs=0,
        prompt_logprobs=0 if prompt_logprobs else None,
        ignore_eos=True,
        detokenize=False,
    )
    engine, _ = _engine(options)
    outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [_answer(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]


def report(options: Options) -> Report:
    """The cache groups and capacity of an engine, and what the plugin logged of them."""
    engine, messages = _engine(options)
    config = engine.llm_engine.vllm_config.cache_config
    core = engine.llm_engine.engine_core.engine_core
    groups = core.scheduler.kv_cache_config.kv_cache_groups
    return Report(
        groups=[
            Group(
                type(group.kv_cache_spec).__name__,
                getattr(group.kv_cache_spec, "sliding_window", None),
                group.kv_cache_spec.page_size_bytes / group.kv_cache_spec.block_size,
                list(group.layer_names),
            )
            for group in groups
        ],
        capacity=config.kv_cache_size_tokens,
        blocks=config.num_gpu_blocks,
        messages=messages,
    )


def preemptions(options: Options) -> int:
    """How often the engine has taken a running request's blocks away."""
    (metric,) = [m for m in _engine(options)[0].get_metrics() if m.name == "vllm:num_preemptions"]
    return metric.value


def failure(options: Options) -> tuple[str, str]:
    """Type and message of the error that starting an engine ends in."""
    try:
        _engine(options)
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError("the engine started")


def _set_up() -> None:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }


@functools.cache
def _engine(options: Options):
    from vllm import LLM

    messages: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        messages.append(f"{record.levelname}: {record.getMessage()}")
        return True

    # A filter, because vLLM takes handlers away when it configures logging.
    capacity = logging.getLogger("vllm.trillion_serve.plugins.vllm.capacity")
    capacity.addFilter(note)
    try:
        engine = LLM(
            options.model,
            dtype=options.dtype,
            load_format=options.load_format,
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=options.max_model_len,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_num_seqs=options.max_num_seqs,
            block_size=options.block_size,
            kv_cache_memory_bytes=options.kv_cache_mib << 20,
            disable_log_stats=False,
        )
    finally:
        capacity.removeFilter(note)
    return engine, messages


def _answer(prompt: list[int], output) -> Answer:
    (completion,) = output.outputs
    return Answer(
        tokens=list(completion.token_ids),
        logprobs=[entry[t].logprob for t, entry in zip(completion.token_ids, completion.logprobs, strict=True)],
        prompt_logprobs=[
            entry[t].logprob for t, entry in zip(prompt[1:], (output.prompt_logprobs or [])[1:], strict=False)
        ],
        cached_tokens=output.num_cached_tokens or 0,
    )
