"""Says at start how many tokens the KV cache holds, and what a large batch costs it."""

import functools
from typing import Any

import torch
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.utils.math_utils import cdiv
from vllm.v1.attention.backend import AttentionBackend, subclass_attention_backend
from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_groups
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec, SlidingWindowSpec

from trillion_serve.plan.capacity import recommended_batched_tokens

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

_WASTE = 0.1


@functools.cache
def reporting(backend: type[AttentionBackend]) -> type[AttentionBackend]:
    """``backend``, one of vLLM's own, which calls :func:`report_capacity` when it is set up."""
    plan: Any = backend.get_builder_cls()

    class ReportingBuilder(plan):
        """Plans steps as the backend does."""

        def __init__(
            self,
            kv_cache_spec: KVCacheSpec,
            layer_names: list[str],
            vllm_config: VllmConfig,
            *rest: Any,
            **options: Any,
        ) -> None:
            super().__init__(kv_cache_spec, layer_names, vllm_config, *rest, **options)
            report_capacity(vllm_config)

    return subclass_attention_backend("Reporting", backend, ReportingBuilder)


def report_capacity(vllm_config: VllmConfig) -> None:
    """Log the capacity of the KV cache that vLLM has just laid out, once.

    Quiet while vLLM lays out a small cache to measure memory with.
    """
    blocks = vllm_config.cache_config.num_gpu_blocks
    if not blocks or torch.distributed.get_rank() != 0:
        return
    layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
    specs: dict[str, KVCacheSpec] = {
        name: spec for name, layer in layers.items() if (spec := layer.get_kv_cache_spec(vllm_config)) is not None
    }
    groups = get_kv_cache_groups(vllm_config, specs)
    tokens, _ = get_kv_cache_capacity(
        vllm_config, KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    )
    group_specs = [group.kv_cache_spec for group in groups]
    context = vllm_config.model_config.max_model_len
    unwindowed = int(blocks / sum(cdiv(context, spec.block_size) for spec in group_specs) * context)
    logger.info_once(
        "The KV cache holds %s tokens at a context of %s: %.2f times what it would without windows.",
        f"{tokens:,}",
        f"{context:,}",
        tokens / max(1, unwindowed),
    )

    steps = vllm_config.max_in_flight_tokens // vllm_config.scheduler_config.max_num_batched_tokens
    recommended = recommended_batched_tokens(context)
    best = int(blocks / _blocks_per_request(group_specs, steps * recommended, context) * context)
    if tokens < (1 - _WASTE) * best:
        logger.warning_once(
            "max_num_batched_tokens is %s, so that every request reserves as much in layers with a window; with "
            "--max-num-batched-tokens %s the KV cache would hold %s tokens instead of %s.",
            f"{vllm_config.scheduler_config.max_num_batched_tokens:,}",
            recommended,
            f"{best:,}",
            f"{tokens:,}",
        )


def _blocks_per_request(specs: list[KVCacheSpec], in_flight_tokens: int, context: int) -> int:
    return sum(
        spec.max_admission_blocks_per_request(in_flight_tokens, context)
        if isinstance(spec, SlidingWindowSpec)
        else cdiv(context, spec.block_size)
        for spec in specs
    )
