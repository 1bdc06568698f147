"""A quantised directory read as if it were a plain one."""

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
        recipe, tensors = self._checkpoint.recipe, self._checkpoint.tensors
        if recipe is None or not is_quantized(name, self._shapes[name]):
            return tensors.read(name)
        return dequantize_weight(name, {part: tensors.read(part) for part in recipe.stored_names(name)}, recipe)
