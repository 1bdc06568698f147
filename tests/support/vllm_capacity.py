"""vLLM's own grouping of layers and its own count of a request's blocks, for tests of what we say of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Layers of two kinds, and the requests that they are asked for."""

    local_layers: int
    global_layers: int
    window: int
    context: int
    tokens_in_flight: int
    block_size: int


def blocks_per_request(cases: list[Case]) -> list[tuple[int, int]]:
    """Layers of a group, and the blocks that a request reserves in all groups, of each case."""
    return [_blocks_per_request(case) for case in cases]


def _blocks_per_request(case: Case) -> tuple[int, int]:
    import torch
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_groups_uniform_page_size
    from vllm.v1.kv_cache_interface import MLAAttentionSpec, SlidingWindowMLASpec, SlidingWindowSpec

    shape = {"block_size": case.block_size, "num_kv_heads": 1, "head_size": 576, "dtype": torch.bfloat16}
    local = SlidingWindowMLASpec(**shape, sliding_window=case.window)
    specs = {f"global.{i}": MLAAttentionSpec(**shape) for i in range(case.global_layers)}
    specs |= {f"local.{i}": local for i in range(case.local_layers)}
    groups = _get_kv_cache_groups_uniform_page_size(specs)
    blocks = sum(
        spec.max_admission_blocks_per_request(case.tokens_in_flight, case.context)
        if isinstance(spec := group.kv_cache_spec, SlidingWindowSpec)
        else -(-case.context // spec.block_size)
        for group in groups
    )
    return max(len(group.layer_names) for group in groups), blocks
