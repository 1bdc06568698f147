"""vLLM's latent attention, with its absorbed projections laid out for a CPU."""

import torch
from vllm.model_executor.layers.attention import MLAAttention
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform


class LatentLayer(MLAAttention):
    """vLLM's layer. On a CPU it copies the projections that decoding absorbs into memory of their own.

    vLLM leaves them as views of ``kv_b_proj``, which a CPU multiplies bfloat16 by far more slowly.
    """

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Split ``kv_b_proj`` as vLLM does, and lay its parts out."""
        super().process_weights_after_loading(act_dtype)
        if current_platform.is_cpu():
            for name in ("W_UV", "W_UK_T"):
                replace_parameter(self, name, getattr(self, name).data.contiguous())
