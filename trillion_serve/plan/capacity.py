"""vLLM's own arithmetic: into how many requests it divides KV memory.

Source: vLLM 0.32, ``vllm/v1/core/kv_cache_utils.py`` (cache groups, ``get_max_concurrency_for_kv_cache_config``) and
``SlidingWindowSpec.max_admission_blocks_per_request``. A test holds these figures against a running engine's.

Memory is cut into blocks of some tokens of some layers. Layers of one kind make groups of equal size, every group has
a table of blocks of its own, and any group may use any block. A global group keeps the whole request. A local group
keeps its window and the tokens of the steps under way, which is why ``max_num_batched_tokens`` decides how much of
the saving is realised.
"""

from dataclasses import dataclass
from math import ceil

from trillion_model.sizes import KV_BYTES, KvCache

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Tokens of a block that vLLM's kernels read: whole multiples of 16, or of a larger power of two, by kernel."""
MOST_BATCHED_TOKENS = 2048
_LEAST_BATCHED_TOKENS = 256
_NEARLY_EQUAL = 1.5


@dataclass(frozen=True)
class Groups:
    """How vLLM groups the layers of a cache.

    Attributes:
        layers: of each group; the last group of a kind may be padded.
        local_groups: groups with a window.
        global_groups: groups without.
    """

    layers: int
    local_groups: int
    global_groups: int

    @classmethod
    def of(cls, cache: KvCache) -> "Groups":
        """Group the layers of ``cache``."""
        kinds = [layers for layers in (cache.local_layers, cache.global_layers) if layers]
        fewest, most = min(kinds), max(kinds)
        layers = most if most < _NEARLY_EQUAL * fewest else fewest
        return cls(layers, ceil(cache.local_layers / layers), ceil(cache.global_layers / layers))


@dataclass(frozen=True)
class Capacity:
    """What fits.

    Attributes:
        blocks: of the whole cache.
        block_bytes: of one.
        blocks_per_request: that vLLM reserves for a request as long as the context.
        tokens: that the cache holds in such requests, as vLLM reports it.
        requests: of that length that fit whole.
    """

    blocks: int
    block_bytes: int
    blocks_per_request: int
    tokens: int
    requests: int

    @property
    def reserved_per_request(self) -> int:
        """Bytes that vLLM reserves for a request as long as the context."""
        return self.blocks_per_request * self.block_bytes


def capacity(
    cache: KvCache, *, dtype: str, memory: int, context: int, tokens_in_flight: int, block_size: int
) -> Capacity:
    """Divide KV memory as vLLM does.

    Args:
        cache: what a device caches.
        dtype: of a cached number, see ``KV_BYTES``.
        memory: bytes for the cache, of a device.
        context: tokens of the longest request.
        tokens_in_flight: most tokens of all steps that may be under way at once.
        block_size: tokens of a block.
    """
    groups = Groups.of(cache)
    block_bytes = groups.layers * cache.numbers * KV_BYTES[dtype] * block_size
    per_request = groups.global_groups * ceil(context / block_size)
    if groups.local_groups:
        assert cache.window is not None
        kept = min(cache.window - 1 + tokens_in_flight, context)
        per_request += groups.local_groups * (ceil(kept / block_size) + 1)
    blocks = memory // block_bytes
    concurrency = blocks / per_request
    return Capacity(blocks, block_bytes, per_request, int(concurrency * context), int(concurrency))


def recommended_batched_tokens(context: int) -> int:
    """Tokens of a step that leave windows most of what they save.

    A layer with a window reserves room for its window and for the tokens of a step, whichever the request; with as
    many of these as the context is long, windows save nothing.
    """
    return min(MOST_BATCHED_TOKENS, max(_LEAST_BATCHED_TOKENS, context // 8))
