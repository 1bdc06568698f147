"""Strict loading into vLLM's layers, see :mod:`trillion_serve.plugins.weights`.

A tensor may belong to another rank: a layer of another pipeline stage, an expert of another expert-parallel rank. Its
name and shape are checked all the same.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.platforms import current_platform

from trillion_serve.errors import EngineStartError
from trillion_serve.plugins.weights import MERGED, Place, expert_places, fill, layer_places

_MERGED = {**MERGED, "fused_qkv_a_proj": {"q_a_proj": 0, "kv_a_proj_with_mqa": 1}}


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
    return fill(
        parameters, places, weights, published, default_weight_loader, lambda name: _elsewhere(name, published, places)
    )


def _check_int4(parameters: Mapping[str, nn.Parameter]) -> None:
    """vLLM's CPU kernel knows no float32, and would say so only when the first prompt runs."""
    packed = next((name for name in parameters if name.endswith(".weight_packed")), None)
    if packed is None or not current_platform.is_cpu():
        return
    if parameters[packed.replace("_packed", "_scale")].dtype == torch.float32:
        raise EngineStartError(
            f"{packed}: on a CPU vLLM multiplies INT4 weights in bfloat16 or float16 only; use --dtype bfloat16"
        )


def _places(model: nn.Module) -> Iterator[tuple[str, Place]]:
    """Every checkpoint tensor that this rank needs, and where it goes."""
    experts = {name: module for name, module in model.named_modules() if isinstance(module, RoutedExperts)}
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in experts:
            yield from expert_places(name, owner.removesuffix(".routed_experts"), _held(experts[owner]))
        elif not owner.endswith(".attn"):  # what the attention layer makes of kv_b_proj after loading
            yield from layer_places(name, _MERGED)


def _held(routed: RoutedExperts) -> list[int]:
    """Experts that this rank has."""
    held = routed.expert_map_manager.map_global_to_local
    return [expert for expert in range(routed.moe_config.num_logical_experts) if held(expert) != -1]


def _elsewhere(name: str, published: Mapping[str, tuple[int, ...]], places: Mapping[str, Place]) -> bool:
    """Whether another rank has a place for ``name``: a published tensor, or what quantisation keeps beside one."""
    module = name.rpartition(".")[0]
    weight = f"{module}.weight"
    return name in published or (weight in published and not any(place.startswith(f"{module}.") for place in places))
