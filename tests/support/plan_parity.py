"""Holds what ``trillion-serve plan`` says of a model against what a running engine says of it."""

from concurrent.futures import ProcessPoolExecutor

from support import vllm_engines
from support.vllm_engines import Options
from trillion_model.sizes import kv_cache
from trillion_serve.plan.capacity import capacity
from trillion_serve.plan.models import load_model
from trillion_serve.plan.weights import weigh


def assert_planned(engines: ProcessPoolExecutor, options: Options) -> None:
    """Assert that an engine on one device holds the weights, part by part, and the cache that were planned for it."""
    told = engines.submit(vllm_engines.report, options).result()
    model = load_model(options.model)
    assert {part.part: part.device for part in weigh(model, options.dtype, 1)} == told.weights
    fits = capacity(
        kv_cache(model.config),
        dtype=options.dtype,
        memory=options.kv_cache_mib << 20,
        context=options.max_model_len,
        tokens_in_flight=options.max_num_batched_tokens,  # a CPU has one step under way
        block_size=options.block_size,
    )
    assert (fits.blocks, fits.tokens) == (told.blocks, told.capacity)
