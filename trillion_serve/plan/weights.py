"""What a device holds of a model's weights, by part: what tensor parallelism shards, and what it repeats."""

import re
from dataclasses import dataclass
from math import ceil

from trillion_model.sizes import BYTES, ROUTER, part_of
from trillion_serve.plan.models import Model

_REPEATED = re.compile(r"norm\b|\.mlp\.gate\.|\.q_a_proj\.|\.kv_a_proj_with_mqa\.")
_KEYS_AND_VALUES = re.compile(r"\.[kv]_proj\.")


@dataclass(frozen=True)
class PartWeights:
    """Bytes of one part of the model.

    Attributes:
        part: its name.
        whole: in the whole model.
        device: on each device.
        repeated: how many of those every device holds alike.
    """

    part: str
    whole: int
    device: int
    repeated: int


def weigh(model: Model, dtype: str, ranks: int) -> tuple[PartWeights, ...]:
    """The weights by part, on each of ``ranks`` tensor-parallel devices.

    A quantised checkpoint counts as it is stored, any other in ``dtype``; routers are float32 in engines.
    """
    kv_heads = getattr(model.config, "num_key_value_heads", None) or ranks
    totals: dict[str, list[int]] = {}
    for name, size in _tensor_bytes(model, dtype).items():
        shards = _shards(name, ranks, kv_heads)
        total = totals.setdefault(part_of(name), [0, 0, 0])
        device = ceil(size / shards)
        for i, amount in enumerate((size, device, device if shards == 1 < ranks else 0)):
            total[i] += amount
    return tuple(PartWeights(part, *amounts) for part, amounts in totals.items())


def _tensor_bytes(model: Model, dtype: str) -> dict[str, int]:
    if model.stored is not None:
        return model.stored
    sizes = {name: BYTES["float32" if part_of(name) == ROUTER else dtype] for name in model.tensors}
    return {name: count * sizes[name] for name, count in model.tensors.items()}


def _shards(name: str, ranks: int, kv_heads: int) -> int:
    """Over how many devices a tensor is spread; a scale goes with its weight."""
    if _REPEATED.search(name):
        return 1
    return min(ranks, kv_heads) if _KEYS_AND_VALUES.search(name) else ranks
