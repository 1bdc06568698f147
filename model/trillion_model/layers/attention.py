"""Which attention implementation runs where: the one place that chooses."""

import torch


def attention_implementation(device: torch.device | str) -> str:
    """Name of the Transformers attention implementation for ``device``.

    Packed documents and windows need a mask. On a CPU it is explicit and goes to PyTorch's SDPA, which has a
    backward there; on a GPU flex attention skips the blocks that the mask empties.
    """
    return "flex_attention" if torch.device(device).type == "cuda" else "sdpa"
