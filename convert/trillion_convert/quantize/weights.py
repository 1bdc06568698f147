"""One weight at a time: quantised, and back. The numbers are those of the compressed-tensors library."""

from typing import TYPE_CHECKING

from trillion_convert.quantize.recipe import WEIGHT, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def quantize_weight(name: str, weight: "torch.Tensor", recipe: Recipe) -> "dict[str, torch.Tensor]":
    """What is stored in the place of a weight, by name, as :meth:`Recipe.stored` says.

    Args:
        name: its published name.
        weight: (rows, columns).
        recipe: how; its group size divides the columns.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = recipe.library_scheme()
    groups = weight.float().unflatten(-1, (-1, recipe.group_size if recipe.grouped else weight.shape[-1]))
    low, high = groups.aminmax(dim=-1)  # (rows, groups) each
    scale, _ = calculate_qparams(low, high, scheme.weights)
    if recipe.grouped:
        # Engines keep these in the model's dtype: rounded before they are used, they are the same everywhere.
        scale = scale.to(weight.dtype)
    compressor = BaseCompressor.get_value_from_registry(recipe.format)
    parts = compressor.compress({"weight": weight.float(), "weight_scale": scale.float()}, scheme)
    module = name.removesuffix(WEIGHT)
    return {f"{module}.{leaf}": part for leaf, part in (parts | {"weight_scale": scale}).items()}


def dequantize_weight(name: str, parts: "Mapping[str, torch.Tensor]", recipe: Recipe) -> "torch.Tensor":
    """The weight that quantised ``parts`` stand for, (rows, columns) in float32."""
    from compressed_tensors.compressors import BaseCompressor

    module = name.removesuffix(WEIGHT)
    local = {stored.removeprefix(f"{module}."): part for stored, part in parts.items()}
    compressor = BaseCompressor.get_value_from_registry(recipe.format)
    local["weight_scale"] = local["weight_scale"].float()
    return compressor.decompress(local, recipe.library_scheme())["weight"]


def relative_error(weight: "torch.Tensor", restored: "torch.Tensor") -> float:
    """Norm of the difference over the norm of the weight; 0 for a weight of zeros that came back as such."""
    difference, norm = (restored.float() - weight.float()).norm().item(), weight.float().norm().item()
    return difference / norm if norm else difference
