"""What a model weighs: parameters by part, bytes by dtype, and bytes of KV cache."""

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from trillion_model.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

KV_BYTES = BYTES | {"fp8": 1}
"""Bytes of a cached number."""

ROUTED = "routed experts"
ROUTER = "router"
EMBEDDINGS = "embeddings"
MTP = "second next token"
"""The module that some families are trained with and never served with."""

_PARTS = (
    (MTP, r"^mtp\."),
    ("norms", r"norm\b"),
    (EMBEDDINGS, r"^model\.embed_tokens\b"),
    ("attention", r"\.self_attn\."),
    (ROUTER, r"\.mlp\.gate\."),
    (ROUTED, r"\.mlp\.experts\."),
    ("shared experts", r"\.mlp\.shared_experts\."),
    ("dense feed-forward", r"\.mlp\."),
    ("head", r"^lm_head\b"),
)
_OTHER = "other"


@dataclass(frozen=True)
class Parameters:
    """Parameter counts.

    Attributes:
        total: by part of the model.
        active: by part, those that one token uses; of the routed experts as many as it is sent to.
    """

    total: dict[str, int]
    active: dict[str, int]

    @property
    def active_without_embeddings(self) -> int:
        """Active parameters but for the input embedding, of which a token reads one row."""
        return sum(self.active.values()) - self.active.get(EMBEDDINGS, 0)


@dataclass(frozen=True)
class KvCache:
    """Sizes of a cache: of latents (VAETKI report, section 2.1), or of keys and values.

    Attributes:
        numbers: cached for a token by a layer.
        local_layers: layers that keep a window of tokens.
        global_layers: layers that keep every token.
        window: tokens of that window; None where no layer is local.
    """

    numbers: int
    local_layers: int
    global_layers: int
    window: int | None

    def without_windows(self) -> "KvCache":
        """The same cache where every layer keeps every token."""
        return KvCache(self.numbers, 0, self.local_layers + self.global_layers, None)

    def bytes_per_token(self, dtype: str) -> dict[str, int]:
        """Bytes for a token: of one layer, of all local layers (while it is in the window), of all global layers."""
        layer = self.numbers * KV_BYTES[dtype]
        return {"layer": layer, "local": layer * self.local_layers, "global": layer * self.global_layers}

    def bytes_per_request(self, dtype: str, tokens: int) -> int:
        """Bytes that a request of ``tokens`` needs."""
        token = self.bytes_per_token(dtype)
        return token["global"] * tokens + token["local"] * min(tokens, self.window or tokens)


def part_of(name: str) -> str:
    """The part of the model that a module's or a published tensor belongs to."""
    return next((part for part, pattern in _PARTS if re.search(pattern, name)), _OTHER)


def count_parameters(architecture: Architecture) -> Parameters:
    """Count every tensor that the configuration calls for."""
    total: dict[str, int] = {}
    for name, shape in architecture.module_shapes.items():
        part = part_of(name)
        total[part] = total.get(part, 0) + prod(shape)
    order = [part for part, _ in _PARTS if part in total] + [_OTHER] * (_OTHER in total)
    total = {part: total[part] for part in order}
    active = dict(total)
    if MTP in total:
        active[MTP] = 0
    if ROUTED in total:
        config = architecture.config
        active[ROUTED] = total[ROUTED] * config.num_experts_per_tok // config.n_routed_experts
    return Parameters(total, active)


def kv_cache(config: "PreTrainedConfig", ranks: int = 1) -> KvCache:
    """The cache that serving ``config`` needs, on each of ``ranks`` tensor-parallel ranks.

    Heads are spread over ranks, a latent is there on every rank.
    """
    if has_latents(config):
        return _cache_of(config, config.cached_numbers)
    heads = max(1, config.num_key_value_heads // ranks)  # with more ranks than heads, several hold the same one
    return _cache_of(config, 2 * heads * config.head_dim)


def expanded_kv_cache(config: "PreTrainedConfig", ranks: int = 1) -> KvCache:
    """The cache of an engine that knows no latents, on each of ``ranks`` tensor-parallel ranks.

    It holds every head's key, and its value padded to the key's size. Families without latents have no other cache
    than :func:`kv_cache`.
    """
    if not has_latents(config):
        return kv_cache(config, ranks)
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    return _cache_of(config, 2 * key * (config.num_attention_heads // ranks))


def has_latents(config: "PreTrainedConfig") -> bool:
    """Whether the cache holds latents, which all heads share, rather than each head's keys and values."""
    return getattr(config, "kv_lora_rank", None) is not None


def _cache_of(config: "PreTrainedConfig", numbers: int) -> KvCache:
    is_local = getattr(config, "is_local", None)  # plain Llama has no such thing
    local = sum(map(is_local, range(config.num_hidden_layers))) if is_local else 0
    return KvCache(numbers, local, config.num_hidden_layers - local, config.sliding_window if local else None)
