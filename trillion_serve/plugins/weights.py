"""Strict loading: every tensor of a checkpoint has one place, every place gets its tensor, or loading fails by name.

Engines' layers hold some published tensors together: ``gate_proj`` and ``up_proj`` are parts of ``gate_up_proj``,
``q_proj``, ``k_proj`` and ``v_proj`` of ``qkv_proj``, and the experts of a layer are stacked in ``w13`` (gate and up)
and ``w2`` (down). What is the same whatever the engine is here; each plugin says which places its layers have.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trillion_model.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Loader = Callable[..., Any]
"""Copies a tensor, or this rank's part of it, into a parameter."""

MERGED: Mapping[str, Mapping[str, int | str]] = {
    "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
    "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
}
"""Layers that hold several published ones, and what engines call the part that each is."""
EXPERT_SHARDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "w13_": (("w1", "gate_proj"), ("w3", "up_proj")),
    "w2_": (("w2", "down_proj"),),
}
"""Stacks of experts: what engines call the parts of one, and what is published."""
_NAMED = 5


@dataclass(frozen=True)
class Place:
    """Where a checkpoint tensor goes: a parameter, a part of it, an expert."""

    parameter: str
    shard: int | str | None = None
    expert: int | None = None


def layer_places(parameter: str, merged: Mapping[str, Mapping[str, int | str]] = MERGED) -> Iterator[tuple[str, Place]]:
    """The published tensors that a layer's parameter holds: several in a merged layer, else the one of its name."""
    owner, _, leaf = parameter.rpartition(".")
    layer = owner.rpartition(".")[2]
    if layer not in merged:
        yield parameter, Place(parameter)
        return
    for part, shard in merged[layer].items():
        yield f"{owner.removesuffix(layer)}{part}.{leaf}", Place(parameter, shard)


def expert_places(parameter: str, experts: str, held: Iterable[int]) -> Iterator[tuple[str, Place]]:
    """The published tensors that a stack of experts holds.

    Args:
        parameter: of the stack.
        experts: the published name of the layer's experts.
        held: which of them this rank has.
    """
    leaf = parameter.rpartition(".")[2]
    stack = next((stack for stack in EXPERT_SHARDS if leaf.startswith(stack)), None)
    if stack is None:
        return
    for expert in held:
        for shard, part in EXPERT_SHARDS[stack]:
            yield f"{experts}.{expert}.{part}.{leaf.removeprefix(stack)}", Place(parameter, shard, expert)


def fill(
    parameters: "Mapping[str, torch.nn.Parameter]",
    places: Mapping[str, Place],
    weights: "Iterable[tuple[str, torch.Tensor]]",
    published: Mapping[str, tuple[int, ...]],
    default_loader: Loader,
    elsewhere: Callable[[str], bool] = lambda name: False,
) -> set[str]:
    """Load ``weights`` into their places.

    Args:
        parameters: of this rank's part of the model.
        places: what each checkpoint tensor that this rank needs is to it.
        weights: checkpoint names and whole tensors.
        published: name and shape of every tensor of the whole model, before quantisation.
        default_loader: for parameters without a ``weight_loader`` of their own.
        elsewhere: whether a tensor without a place belongs to another rank.

    Returns:
        Names of the parameters loaded.

    Raises:
        CheckpointError: a tensor is unknown, missing, there twice, or of the wrong shape or kind.
    """
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
            _load(parameters[places[name].parameter], name, tensor, places[name], default_loader)
        elif not elsewhere(name):
            raise CheckpointError(f"{name}: the architecture has no such tensor; remove it from the checkpoint")
    if missing := sorted(places.keys() - seen):
        raise lacking(missing)
    return {place.parameter for place in places.values()}


def lacking(names: list[str]) -> CheckpointError:
    """The error for tensors that a checkpoint does not hold."""
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return CheckpointError(f"the checkpoint lacks {listed}; export it again")


def _load(
    parameter: "torch.nn.Parameter", name: str, tensor: "torch.Tensor", place: Place, default_loader: Loader
) -> None:
    load = getattr(parameter, "weight_loader", default_loader)
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
