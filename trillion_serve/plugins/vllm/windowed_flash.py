"""Prefill within a window by FlashAttention. Importing it needs a GPU build of vLLM."""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.mla.prefill.base import MLADimensions
from vllm.v1.attention.backends.mla.prefill.flash_attn import FlashAttnPrefillBackend
from vllm.v1.attention.backends.mla.prefill.selector import MLAPrefillSelectorConfig

from trillion_serve.plugins.vllm.fused_backend import PrefillChunk, WindowedPrefill


class WindowedFlashAttention(FlashAttnPrefillBackend, WindowedPrefill):
    """FlashAttention over requests of different lengths, each query seeing its window."""

    @classmethod
    def runs(cls, vllm_config: VllmConfig, qk_nope_head_dim: int, qk_rope_head_dim: int, v_head_dim: int) -> bool:
        """Whether it does on this device, for these sizes and the model's dtype."""
        wanted = MLAPrefillSelectorConfig(
            dtype=vllm_config.model_config.dtype,
            mla_dimensions=MLADimensions(
                qk_nope_head_dim=qk_nope_head_dim, qk_rope_head_dim=qk_rope_head_dim, v_head_dim=v_head_dim
            ),
        )
        return not cls.validate_configuration(current_platform.get_device_capability(), wanted)

    def clone(self) -> "WindowedFlashAttention":
        """See :meth:`WindowedPrefill.clone`."""
        return WindowedFlashAttention(
            num_heads=self.num_heads,
            scale=self.scale,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
            v_head_dim=self.v_head_dim,
            vllm_config=self.vllm_config,
        )

    def supports_quant_output(self, quant_key: Any) -> bool:
        """No: the output is written in the model's dtype."""
        return False

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chunk: PrefillChunk, window: int
    ) -> torch.Tensor:
        """See :meth:`WindowedPrefill.attend`."""
        return self._flash_attn_varlen_diff_headdims(
            q=q,
            k=k,
            v=v,
            cu_seqlens_q=chunk.query_starts,
            cu_seqlens_k=chunk.key_starts,
            max_seqlen_q=chunk.most_queries,
            max_seqlen_k=chunk.most_keys,
            softmax_scale=self.scale,
            causal=True,
            window_size=(window - 1, 0),
        )
