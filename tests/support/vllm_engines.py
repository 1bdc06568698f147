"""Real vLLM engines for tests, in a process of their own so that they leave no trace in the tests' process.

:func:`run` is called there (``pool.submit(run, options, prompts)``); an engine is started once for each ``Options``
and kept.
"""

import functools
import logging
import multiprocessing
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from trillion_model.sizes import part_of


@dataclass(frozen=True)
class Options:
    """How to start an engine.

    ``model`` is a directory, ``fused`` gives its windows a GPU's attention, ``lora_rank`` makes room for an adapter.
    """

    model: str
    dtype: str = "float32"
    max_model_len: int = 256
    max_num_batched_tokens: int = 48
    max_num_seqs: int = 8
    block_size: int = 16
    kv_cache_mib: int = 64
    load_format: str = "auto"
    eager: bool = True
    fused: bool = False
    lora_rank: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: bool = False


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
    """What an engine says of itself.

    ``backends`` names the layers of each; ``weights`` are bytes by part of the model as they were loaded, before they
    are packed for kernels.
    """

    groups: list[Group]
    capacity: int
    blocks: int
    messages: list[str]
    backends: dict[str, list[str]]
    weights: dict[str, int]


def pool() -> ProcessPoolExecutor:
    """A process that engines may be started in."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_set_up)


def run(
    options: Options,
    prompts: list[list[int]],
    max_tokens: int,
    prompt_logprobs: bool = True,
    adapters: list[str | None] | None = None,
) -> list[Answer]:
    """Continue ``prompts`` together, greedily. Log-probabilities of a prompt keep it from being read from the cache.

    ``adapters`` names a directory for each prompt, or None for the model as it is.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=0,
        logprobs=0,
        prompt_logprobs=0 if prompt_logprobs else None,
        ignore_eos=True,
        detokenize=False,
    )
    engine, _ = _engine(options)
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        params,
        use_tqdm=False,
        lora_request=[name and LoRARequest(name, _number(name), name) for name in adapters] if adapters else None,
    )
    return [_answer(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]


def sampled(options: Options, prompts: list[list[int]], max_tokens: int, seed: int) -> list[list[int]]:
    """Tokens drawn for ``prompts`` together, each by a generator of its own with this seed."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=1, seed=seed, ignore_eos=True, detokenize=False)
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [
        list(output.outputs[0].token_ids) for output in _engine(options)[0].generate(requests, params, use_tqdm=False)
    ]


def report(options: Options) -> Report:
    """The cache groups and capacity of an engine, and what the plugin logged of them."""
    engine, messages = _engine(options)
    config = engine.llm_engine.vllm_config.cache_config
    core = engine.llm_engine.engine_core.engine_core
    backends: dict[str, list[str]] = {}
    for name, layer in engine.llm_engine.vllm_config.compilation_config.static_forward_context.items():
        if hasattr(layer, "get_attn_backend"):
            backends.setdefault(layer.get_attn_backend().get_name(), []).append(name)
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
        backends=backends,
        weights=_LOADED[options],
    )


def logits_dtype(options: Options) -> torch.dtype:
    """What an engine's logits are computed in."""

    def compute(model: torch.nn.Module) -> torch.dtype:
        weight = model.model.norm.weight
        return model.compute_logits(weight[None]).dtype

    return _engine(options)[0].apply_model(compute)[0]


def refusal(options: Options, adapter: str) -> tuple[str, str]:
    """Type and message of the error that loading an adapter ends in."""
    from vllm.lora.request import LoRARequest

    engine, _ = _engine(options)
    try:
        engine.llm_engine.add_lora(LoRARequest(adapter, _number(adapter), adapter))
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError("the adapter was taken")


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
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def _number(adapter: str) -> int:
    """What vLLM knows an adapter by."""
    return zlib.crc32(adapter.encode()) + 1


_LOADED: dict[Options, dict[str, int]] = {}


@contextmanager
def _weighing(options: Options) -> Iterator[None]:
    """Note what an engine of this process loads, for :func:`report`."""
    from vllm.model_executor.model_loader import base_loader

    loaded = _LOADED[options] = {}
    pack = base_loader.process_weights_after_loading

    def weigh(model: torch.nn.Module, *args) -> None:
        for name, tensor in model.named_parameters():
            loaded[part_of(name)] = loaded.get(part_of(name), 0) + tensor.nbytes
        pack(model, *args)

    base_loader.process_weights_after_loading = weigh
    try:
        yield
    finally:
        base_loader.process_weights_after_loading = pack


@contextmanager
def _noting(messages: list[str]) -> Iterator[None]:
    """Add what our plugin logs of an engine's capacity."""

    def note(record: logging.LogRecord) -> bool:
        messages.append(f"{record.levelname}: {record.getMessage()}")
        return True

    # A filter, because vLLM takes handlers away when it configures logging.
    capacity = logging.getLogger("vllm.trillion_serve.plugins.vllm.capacity")
    capacity.addFilter(note)
    try:
        yield
    finally:
        capacity.removeFilter(note)


@functools.cache
def _engine(options: Options):
    from vllm import LLM

    from support import fused_vaetki

    messages: list[str] = []
    with _noting(messages), _weighing(options):
        engine = LLM(
            options.model,
            dtype=options.dtype,
            load_format=options.load_format,
            skip_tokenizer_init=True,
            # Eagerly, vLLM on a CPU leaves a pipeline's buffers out; tracing without compiling makes them.
            enforce_eager=options.eager and options.pipeline_parallel == 1,
            compilation_config={"mode": 2, "backend": "eager"} if options.pipeline_parallel > 1 else {},
            max_model_len=options.max_model_len,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_num_seqs=options.max_num_seqs,
            block_size=options.block_size,
            kv_cache_memory_bytes=options.kv_cache_mib << 20,
            disable_log_stats=False,
            enable_lora=options.lora_rank > 0,
            max_lora_rank=max(options.lora_rank, 8),
            tensor_parallel_size=options.tensor_parallel,
            pipeline_parallel_size=options.pipeline_parallel,
            enable_expert_parallel=options.expert_parallel,
            hf_overrides={"architectures": [fused_vaetki.register()]} if options.fused else {},
        )
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
