"""A quantised directory read as if it were a plain one."""

from math import prod
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint
from trillion_convert.quantize.recipe import is_quantized
from trillion_convert.quantize.weights import dequantize_weight

if TYPE_CHECKING:
    import torch


class PlainTensors:
    """Published tensors by name, dequantised where they are quantised.

    Args:
        checkpoint: a published directory, quantised or not.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._shapes = checkpoint.architecture.published_shapes()

    def read(self, name: str) -> "torch.Tensor":
        """One tensor: float32 where it is quantised, else as it is stored."""
        recipe = self._checkpoint.recipe
        if recipe is None or not is_quantized(name, self._shapes[name]):
            return self._stored(name)
        return dequantize_weight(name, {part: self._stored(part) for part in recipe.stored_names(name)}, recipe)

    def _stored(self, name: str) -> "torch.Tensor":
        """In memory of its own, which is free again afterwards, as a file's mapped pages are not."""
        tensors = self._checkpoint.tensors
        shape = tensors[name].shape
        return tensors.read_range(name, 0, prod(shape)).view(shape)
