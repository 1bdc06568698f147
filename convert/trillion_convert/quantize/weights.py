"""One weight at a time: quantised, and back. The numbers are those of the compressed-tensors library."""

from math import prod, sqrt
from typing import TYPE_CHECKING

from trillion_convert.quantize.recipe import SHAPE, WEIGHT, Recipe
from trillion_convert.tensor_files import TensorFiles, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

BLOCK = 2**20
"""Numbers of a weight that are quantised at a time, in whole rows; no scale is shared between rows."""
_COPIES = 6
"""Times that a block is in memory as float32 while it is quantised and held against itself."""


def quantize_stored(
    tensors: TensorFiles, name: str, recipe: Recipe, block: int = BLOCK
) -> "tuple[dict[str, torch.Tensor], float]":
    """What :func:`quantize_weight` makes of a stored weight, and its :func:`relative_error`, a block at a time.

    Args:
        tensors: where it is.
        name: its published name.
        recipe: how.
        block: numbers at a time; at least one row is read.
    """
    import torch

    info = tensors[name]
    rows, columns = info.shape
    stored = recipe.stored(name, info)
    parts = {part: torch.empty(made.shape, dtype=getattr(torch, made.dtype)) for part, made in stored.items()}
    difference = norm = 0.0
    step = max(1, block // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        weight = tensors.read_range(name, start * columns, stop * columns).view(-1, columns)
        made = quantize_weight(name, weight, recipe)
        difference += (dequantize_weight(name, made, recipe).float() - weight.float()).norm().item() ** 2
        norm += weight.float().norm().item() ** 2
        for part in made:
            if part.endswith(SHAPE):
                parts[part] = torch.tensor(info.shape)
            else:
                parts[part][start:stop] = made[part]
    return parts, sqrt(difference / norm) if norm else sqrt(difference)


def held_bytes(info: TensorInfo, stored: "Mapping[str, TensorInfo]") -> int:
    """Bytes in memory while :func:`quantize_stored` makes ``stored`` of a weight: that, and copies of a block."""
    numbers = max(BLOCK, info.shape[-1])
    return sum(part.nbytes for part in stored.values()) + _COPIES * 4 * min(numbers, prod(info.shape))


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
