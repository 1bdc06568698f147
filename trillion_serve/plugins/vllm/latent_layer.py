"""vLLM's latent attention, with its absorbed projections laid out for a CPU."""

import torch
from vllm.model_executor.layers.attention import MLAAttention
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform

from trillion_serve.plugins.vllm.backend import LatentImpl


class LatentLayer(MLAAttention):
    """vLLM's layer. On a CPU it lays out the projections that decoding absorbs.

    vLLM leaves them as views of ``kv_b_proj``. Where vLLM's packed product runs, the layer takes the way that vLLM has
    for it; elsewhere it copies them into memory of their own.
    """

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Split ``kv_b_proj`` as vLLM does, and lay its parts out."""
        super().process_weights_after_loading(act_dtype)
        if not current_platform.is_cpu():
            return
        self.is_amx_bmm_enabled = isinstance(self.impl, LatentImpl) and self.impl.pack(self.W_UK_T, self.W_UV)
        if not self.is_amx_bmm_enabled:
            for name in ("W_UV", "W_UK_T"):
                replace_parameter(self, name, getattr(self, name).data.contiguous())
