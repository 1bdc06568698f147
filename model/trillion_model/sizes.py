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

ROUTED = "routed experts"
EMBEDDINGS = "embeddings"

_PARTS = (
    ("norms", r"norm\b"),
    (EMBEDDINGS, r"^model\.embed_tokens\b"),
    ("attention", r"\.self_attn\."),
    ("router", r"\.mlp\.gate\."),
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
    """Sizes of a latent cache (VAETKI report, section 2.1).

    Attributes:
        numbers: cached for a token by a layer.
        local_layers: layers that keep a window of tokens.
        global_layers: layers that keep every token.
        window: tokens of that window.
    """

    numbers: int
    local_layers: int
    global_layers: int
    window: int

    def bytes_per_token(self, dtype: str) -> dict[str, int]:
        """Bytes for a token: of one layer, of all local layers (while it is in the window), of all global layers."""
        layer = self.numbers * BYTES[dtype]
        return {"layer": layer, "local": layer * self.local_layers, "global": layer * self.global_layers}

    def bytes_per_request(self, dtype: str, tokens: int) -> int:
        """Bytes that a request of ``tokens`` needs."""
        token = self.bytes_per_token(dtype)
        return token["global"] * tokens + token["local"] * min(tokens, self.window)


def count_parameters(architecture: Architecture) -> Parameters:
    """Count every tensor that the configuration calls for."""
    total: dict[str, int] = {}
    for name, shape in architecture.module_shapes.items():
        part = next((part for part, pattern in _PARTS if re.search(pattern, name)), _OTHER)
        total[part] = total.get(part, 0) + prod(shape)
    order = [part for part, _ in _PARTS if part in total] + [_OTHER] * (_OTHER in total)
    total = {part: total[part] for part in order}
    active = dict(total)
    if ROUTED in total:
        config = architecture.config
        active[ROUTED] = total[ROUTED] * config.num_experts_per_tok // config.n_routed_experts
    return Parameters(total, active)


def kv_cache(config: "PreTrainedConfig") -> KvCache:
    """The cache that serving ``config`` needs."""
    local = sum(map(config.is_local, range(config.num_hidden_layers)))
    return KvCache(config.latent_size, local, config.num_hidden_layers - local, config.sliding_window)
