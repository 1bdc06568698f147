"""Strict loading into SGLang's layers, see :mod:`trillion_serve.plugins.weights`.

A rank loads its part of each tensor; whole names and shapes are checked on every rank.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.model_loader.weight_utils import default_weight_loader
from torch import nn

from trillion_serve.plugins.weights import Place, expert_places, fill, layer_places


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
    return fill(dict(model.named_parameters()), dict(_places(model)), weights, published, default_weight_loader)


def _places(model: nn.Module) -> Iterator[tuple[str, Place]]:
    """Every checkpoint tensor, and where it goes."""
    experts = {name: module for name, module in model.named_modules() if isinstance(module, FusedMoE)}
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in experts:
            yield from expert_places(name, owner, range(experts[owner].num_experts))
        else:
            yield from layer_places(name)
