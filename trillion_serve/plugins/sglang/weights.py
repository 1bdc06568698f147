"""Strict loading: every tensor of a checkpoint has one place, every place gets its tensor, or loading fails by name.

SGLang's layers hold some published tensors together: ``gate_proj`` and ``up_proj`` are parts of ``gate_up_proj``,
``q_proj``, ``k_proj`` and ``v_proj`` of ``qkv_proj``, and the experts of a layer are stacked in ``w13`` (gate and up)
and ``w2`` (down). A rank loads its part of each; whole names and shapes are checked on every rank.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.model_loader.weight_utils import default_weight_loader
from torch import nn

from trillion_model.errors import CheckpointError

_MERGED: dict[str, dict[str, int | str]] = {
    "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
    "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
}
"""Layers that hold several published ones, and what SGLang calls the part that each is."""
_EXPERT_SHARDS = {"w13_weight": (("w1", "gate_proj"), ("w3", "up_proj")), "w2_weight": (("w2", "down_proj"),)}
_NAMED = 5


@dataclass(frozen=True)
class _Place:
    """Where a checkpoint tensor goes: a parameter, a part of it, an expert."""

    parameter: str
    shard: int | str | None = None
    expert: int | None = None


def load_strictly(
    model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]], published: Mapping[str, tuple[int, ...]]
) -> set[str]:
    """Load ``weights`` into this rank's part of ``model``.

    Args:
        model: built of SGLang's layers.
        weights: checkpoint names and whole tensors.
        published: name and shape of every tensor of the model.

    Returns:
        Names of the parameters loaded.

    Raises:
        CheckpointError: a tensor is unknown, missing, there twice or of the wrong shape.
    """
    parameters = dict(model.named_parameters())
    places = dict(_places(model))
    seen: set[str] = set()
    for name, tensor in weights:
        if name in seen:
            raise CheckpointError(f"{name}: the checkpoint holds it twice; remove one of them")
        if name not in places:
            raise CheckpointError(f"{name}: the architecture has no such tensor; remove it from the checkpoint")
        if tuple(tensor.shape) != published[name]:
            raise CheckpointError(
                f"{name}: shape is {tuple(tensor.shape)}, but the configuration gives {published[name]}"
            )
        seen.add(name)
        _load(parameters[places[name].parameter], tensor, places[name])
    if missing := sorted(places.keys() - seen):
        listed = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        raise CheckpointError(f"the checkpoint lacks {listed}; export it again")
    return {place.parameter for place in places.values()}


def _places(model: nn.Module) -> Iterator[tuple[str, _Place]]:
    """Every checkpoint tensor, and where it goes."""
    experts = {name: module for name, module in model.named_modules() if isinstance(module, FusedMoE)}
    for name, _ in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        merged = owner.rpartition(".")[2]
        if owner in experts:
            for expert in range(experts[owner].num_experts):
                for shard, part in _EXPERT_SHARDS[leaf]:
                    yield f"{owner}.{expert}.{part}.weight", _Place(name, shard, expert)
        elif merged in _MERGED:
            for part, piece in _MERGED[merged].items():
                yield f"{owner.removesuffix(merged)}{part}.{leaf}", _Place(name, piece)
        else:
            yield name, _Place(name)


def _load(parameter: nn.Parameter, tensor: torch.Tensor, place: _Place) -> None:
    load = getattr(parameter, "weight_loader", default_weight_loader)
    if place.expert is not None:
        load(parameter, tensor, place.parameter, shard_id=place.shard, expert_id=place.expert)
    elif place.shard is not None:
        load(parameter, tensor, place.shard)
    else:
        load(parameter, tensor)
