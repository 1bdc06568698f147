"""Strict loading: every tensor of a checkpoint has one place, every place gets its tensor, or loading fails by name.

vLLM's layers hold some published tensors together: ``gate_proj`` and ``up_proj`` are parts of ``gate_up_proj``,
``q_proj``, ``k_proj`` and ``v_proj`` of ``qkv_proj``, and the experts of a layer are stacked in ``w13`` (gate and up)
and ``w2`` (down). A tensor may also belong to another rank: a layer of another pipeline stage, an expert of another
expert-parallel rank. Its name and shape are checked all the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.platforms import current_platform

from trillion_model.errors import CheckpointError
from trillion_serve.errors import EngineStartError

_MERGED: dict[str, dict[str, int | str]] = {
    "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
    "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
    "fused_qkv_a_proj": {"q_a_proj": 0, "kv_a_proj_with_mqa": 1},
}
"""Layers that hold several published ones, and what vLLM calls the part that each is."""
_EXPERT_SHARDS = {"w13_": (("w1", "gate_proj"), ("w3", "up_proj")), "w2_": (("w2", "down_proj"),)}
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
        model: built of vLLM's layers.
        weights: checkpoint names and whole tensors.
        published: name and shape of every tensor of the whole model, before quantisation.

    Returns:
        Names of the parameters loaded.

    Raises:
        CheckpointError: a tensor is unknown, missing, there twice or of the wrong shape.
        EngineStartError: the weights are INT4 and the dtype is one that vLLM does not multiply them in.
    """
    parameters = dict(model.named_parameters())
    _check_int4(parameters)
    places = dict(_places(model))
    seen: set[str] = set()
    for name, tensor in weights:
        if name in seen:
            raise CheckpointError(f"{name}: the checkpoint holds it twice; remove one of them")
        seen.add(name)
        if name in published and tuple(tensor.shape) != published[name]:
            raise CheckpointError(
                f"{name}: shape is {tuple(tensor.shape)}, but the configuration gives {published[name]}"
            )
        if name in places:
            _load(parameters[places[name].parameter], name, tensor, places[name])
        elif not _elsewhere(name, published, places):
            raise CheckpointError(f"{name}: the architecture has no such tensor; remove it from the checkpoint")
    if missing := sorted(places.keys() - seen):
        listed = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        raise CheckpointError(f"the checkpoint lacks {listed}; export it again")
    return {place.parameter for place in places.values()}


def _check_int4(parameters: Mapping[str, nn.Parameter]) -> None:
    """vLLM's CPU kernel knows no float32, and would say so only when the first prompt runs."""
    packed = next((name for name in parameters if name.endswith(".weight_packed")), None)
    if packed is None or not current_platform.is_cpu():
        return
    if parameters[packed.replace("_packed", "_scale")].dtype == torch.float32:
        raise EngineStartError(
            f"{packed}: on a CPU vLLM multiplies INT4 weights in bfloat16 or float16 only; use --dtype bfloat16"
        )


def _places(model: nn.Module) -> Iterator[tuple[str, _Place]]:
    """Every checkpoint tensor that this rank needs, and where it goes."""
    experts = {name: module for name, module in model.named_modules() if isinstance(module, RoutedExperts)}
    for name, _ in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if owner in experts:
            yield from _expert_places(name, owner, leaf, experts[owner])
        elif (merged := owner.rpartition(".")[2]) in _MERGED:
            for part, shard in _MERGED[merged].items():
                yield f"{owner.removesuffix(merged)}{part}.{leaf}", _Place(name, shard)
        elif not owner.endswith(".attn"):  # what the attention layer makes of kv_b_proj after loading
            yield name, _Place(name)


def _expert_places(name: str, owner: str, leaf: str, routed: RoutedExperts) -> Iterator[tuple[str, _Place]]:
    prefix = owner.removesuffix(".routed_experts")
    for stack, shards in _EXPERT_SHARDS.items():
        if not leaf.startswith(stack):
            continue
        for expert in range(routed.moe_config.num_logical_experts):
            if routed.expert_map_manager.map_global_to_local(expert) == -1:
                continue
            for shard, part in shards:
                yield f"{prefix}.{expert}.{part}.{leaf.removeprefix(stack)}", _Place(name, shard, expert)


def _load(parameter: nn.Parameter, name: str, tensor: torch.Tensor, place: _Place) -> None:
    load = getattr(parameter, "weight_loader", default_weight_loader)
    try:
        if place.expert is not None:
            load(parameter, tensor, place.parameter, shard_id=place.shard, expert_id=place.expert)
        elif place.shard is not None:
            load(parameter, tensor, place.shard)
        else:
            load(parameter, tensor)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: {tensor.dtype} of shape {tuple(tensor.shape)} does not fit {place.parameter}, {parameter.dtype} "
            f"of shape {tuple(parameter.shape)} ({error})"
        ) from error


def _elsewhere(name: str, published: Mapping[str, tuple[int, ...]], places: Mapping[str, _Place]) -> bool:
    """Whether another rank has a place for ``name``: a published tensor, or what quantisation keeps beside one."""
    module = name.rpartition(".")[0]
    weight = f"{module}.weight"
    return name in published or (weight in published and not any(place.startswith(f"{module}.") for place in places))
