"""What ``attention_engine.py`` measures, one variant a process: prefill, decode steps, and attention alone in them."""

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PRESET = "vaetki-7b-a1b"
OURS, NO_WINDOW, EXPANDED = "latents, windows", "latents, no windows", "expanded, windows"
TRANSFORMERS = "Transformers"
VARIANTS = (OURS, EXPANDED, NO_WINDOW, TRANSFORMERS)

GIB = 2**30
BATCHED_TOKENS = 2048
BLOCK_SIZE = 128
_SPREAD = 0.02
_MOST_REQUESTS = 512


@dataclass(frozen=True)
class Case:
    """One variant to measure.

    Attributes:
        variant: one of VARIANTS.
        layers: of the model; every sixth is global, and the last if there are fewer.
        dtype: of weights, activations and cache.
        prefills: prompt lengths.
        decodes: (context, batch) of decode steps.
        full_context: context at which as many requests decode as fit.
        kv_memory: bytes of KV cache.
        steps: decode steps to measure.
        threads: of the processor.
    """

    variant: str
    layers: int
    dtype: str
    prefills: tuple[int, ...]
    decodes: tuple[tuple[int, int], ...]
    full_context: int
    kv_memory: int
    steps: int
    threads: int

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, those that are decoded included."""
        return max(self.full_context, *self.prefills, *(context for context, _ in self.decodes)) + BLOCK_SIZE


@dataclass(frozen=True)
class Step:
    """A decode step.

    Attributes:
        context: tokens of each request.
        batch: requests.
        seconds: of the whole step, the median.
        attention: of attention in it: from queries and latents to every head's output, all layers, the median.
    """

    context: int
    batch: int
    seconds: float
    attention: float


@dataclass(frozen=True)
class Result:
    """What a variant did.

    Attributes:
        variant: one of VARIANTS.
        prefill: tokens a second by prompt length.
        steps: decode steps.
        full: a step of as many requests as fit into the KV memory; None where there is no such limit.
        seconds: that measuring took, loading included.
    """

    variant: str
    prefill: dict[int, float]
    steps: list[Step]
    full: Step | None
    seconds: float


@dataclass
class Stopwatch:
    """Adds up the time of the calls that it wraps."""

    seconds: float = 0.0
    laps: list[float] = field(default_factory=list)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed

    def lap(self) -> None:
        """Note what has been added up, and begin anew."""
        self.laps.append(self.seconds)
        self.seconds = 0.0


def measure(case: Case) -> Result:
    """Measure ``case`` in this process, which must have measured nothing else."""
    os.environ |= {
        "OMP_NUM_THREADS": str(case.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    began = time.perf_counter()
    try:
        prefill, steps, full = (_measure_transformers if case.variant == TRANSFORMERS else _measure_engine)(case)
    except Exception as error:  # which may not find its way to another process
        raise RuntimeError(f"{case.variant}: {type(error).__name__}: {error}") from None
    return Result(case.variant, prefill, steps, full, time.perf_counter() - began)


def shape(layers: int, context: int, windows: bool = True) -> Any:
    """The model's configuration with fewer layers, and room for ``context`` tokens."""
    from trillion_model import presets

    config = presets.get(PRESET)
    kinds = ["full_attention" if (i + 1) % 6 == 0 or not windows else "sliding_attention" for i in range(layers)]
    kinds[-1] = kinds[-1] if "full_attention" in kinds else "full_attention"
    return config.replace(num_hidden_layers=layers, layer_types=kinds, max_position_embeddings=context)  # type: ignore[attr-defined]


def start_engine(config: Any, **options: Any) -> Any:
    """A vLLM engine in this process, with random weights."""
    from vllm import LLM

    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        return LLM(
            directory,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_num_batched_tokens=BATCHED_TOKENS,
            block_size=BLOCK_SIZE,
            enable_prefix_caching=False,
            **options,
        )


def _measure_engine(case: Case) -> tuple[dict[int, float], list[Step], Step | None]:
    import torch

    from benchmarks import expanded_vaetki
    from benchmarks.filled_context import FilledContext
    from trillion_serve.plugins.vllm.vaetki import VaetkiAttention

    torch.set_num_threads(case.threads)
    attention = Stopwatch()
    config = shape(case.layers, case.longest, windows=case.variant != NO_WINDOW)
    config.architectures = ["VaetkiForCausalLM"]
    attends: type[VaetkiAttention] = VaetkiAttention
    if case.variant == EXPANDED:
        expanded_vaetki.register()
        config.architectures = [expanded_vaetki.ARCHITECTURE]
        attends = expanded_vaetki.ExpandedAttention
    attends.attend = attention.wrap(attends.attend)  # type: ignore[method-assign]
    connector = {"kv_connector": FilledContext.__name__, "kv_connector_module_path": FilledContext.__module__}
    engine = start_engine(
        config,
        dtype=case.dtype,
        max_model_len=case.longest,
        max_num_seqs=_MOST_REQUESTS,
        kv_cache_memory_bytes=case.kv_memory,
        disable_hybrid_kv_cache_manager=False,
        kv_transfer_config=connector
        | {
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"startup_fill": True, "fill_mean": 0.0, "fill_std": _SPREAD},
        },
    ).llm_engine
    requests = _Requests(engine, config.vocab_size, attention)
    requests.step_times(1, 64, 2)  # warm up
    prefill = {length: length / requests.seconds_of_prompt(length) for length in case.prefills}
    fits = int(engine.vllm_config.cache_config.kv_cache_max_concurrency)
    FilledContext.filling = True
    steps = [requests.step_times(batch, context, case.steps) for context, batch in case.decodes if batch <= fits]
    return prefill, steps, requests.step_times(min(fits, _MOST_REQUESTS), case.full_context, case.steps)


class _Requests:
    """Requests to an engine in this process, a step at a time."""

    def __init__(self, engine: Any, vocabulary: int, attention: Stopwatch) -> None:
        self.engine = engine
        self.vocabulary = vocabulary
        self.attention = attention
        self.added = 0

    def seconds_of_prompt(self, length: int) -> float:
        """Time to the first token of one prompt."""
        self._add(length, 1)
        began = time.perf_counter()
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return time.perf_counter() - began

    def step_times(self, batch: int, context: int, steps: int) -> Step:
        """Decode ``batch`` requests together; the step that admits them is left out."""
        for _ in range(batch):
            self._add(context, steps + 1)
        whole = []
        self.engine.step()
        self.attention.lap()
        self.attention.laps.clear()
        while self.engine.has_unfinished_requests():
            began = time.perf_counter()
            running = self.engine.step()
            whole.append(time.perf_counter() - began)
            self.attention.lap()
            assert len(running) == batch, f"{len(running)} of {batch} requests ran together"
        return Step(context, batch, statistics.median(whole), statistics.median(self.attention.laps))

    def _add(self, length: int, tokens: int) -> None:
        from vllm import SamplingParams

        self.added += 1
        ids = [(self.added * 7919 + 31 * i) % self.vocabulary for i in range(length)]
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
        self.engine.add_request(str(self.added), {"prompt_token_ids": ids}, params)


def _measure_transformers(case: Case) -> tuple[dict[int, float], list[Step], Step | None]:
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from trillion_model.cache import LatentCache
    from trillion_model.vaetki import VaetkiForCausalLM
    from trillion_model.vaetki.modeling_vaetki import VaetkiAttention

    torch.set_num_threads(case.threads)
    config = shape(case.layers, case.longest)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(getattr(torch, case.dtype))
    model = VaetkiForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    attention = Stopwatch()
    VaetkiAttention._expand = attention.wrap(VaetkiAttention._expand)  # type: ignore[method-assign]
    LatentCache.update = attention.wrap(LatentCache.update)  # type: ignore[method-assign]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention.wrap(ALL_ATTENTION_FUNCTIONS["sdpa"])

    def forward(ids: torch.Tensor, cache: LatentCache) -> float:
        began = time.perf_counter()
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began

    def random_ids(*size: int) -> torch.Tensor:
        return torch.randint(0, config.vocab_size, size)

    def filled_cache(batch: int, context: int) -> LatentCache:
        cache = LatentCache(config)
        for layer in range(case.layers):
            sizes = (config.kv_lora_rank, config.qk_rope_head_dim)
            parts = (torch.randn(batch, 1, context - 1, n).to(model.dtype) * _SPREAD for n in sizes)
            cache.update(*parts, layer)
        return cache

    def prefill_seconds(length: int) -> float:
        cache, ids = LatentCache(config), random_ids(1, length)
        return sum(forward(chunk, cache) for chunk in ids.split(BATCHED_TOKENS, dim=1))

    def step_times(batch: int, context: int) -> Step:
        cache = filled_cache(batch, context)
        forward(random_ids(batch, 1), cache)
        attention.lap()
        attention.laps.clear()
        whole = []
        for _ in range(case.steps):
            whole.append(forward(random_ids(batch, 1), cache))
            attention.lap()
        gc.collect()
        return Step(context, batch, statistics.median(whole), statistics.median(attention.laps))

    with torch.inference_mode():
        step_times(1, 64)  # warm up
        prefill = {length: length / prefill_seconds(length) for length in case.prefills}
        return prefill, [step_times(batch, context) for context, batch in case.decodes], None
