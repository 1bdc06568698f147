"""vLLM's attention backend for latents with a window: :mod:`latent_attention` behind vLLM's interfaces.

Plain PyTorch, for a CPU, where every layer uses it: vLLM's own backend there knows neither a window nor chunked
prefill. :mod:`fused_backend` is the one for local layers on a GPU.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm import _custom_ops as ops
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionLayer,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MLAAttentionImpl,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import KVCacheSpec, MLAAttentionSpec, SlidingWindowMLASpec

from trillion_model.errors import ConfigError
from trillion_serve.plugins.vllm import cpu_prefill, latent_attention, latent_plan
from trillion_serve.plugins.vllm.capacity import report_capacity
from trillion_serve.plugins.vllm.latent_plan import DecodeGroup, DecodeRequest, PrefillRequest

_HAS_CACHE_KERNEL = hasattr(torch.ops._C, "concat_and_cache_mla_cpu")
"""vLLM builds it for some CPUs only."""


@dataclass
class LatentMetadata(AttentionMetadata):
    """What one step reads from one cache group; decoding requests come first in the batch.

    Attributes:
        num_actual_tokens: tokens of the step.
        num_decodes, num_decode_tokens: requests that decode, one token each.
        num_prefills: requests with more new tokens than one.
        decode: the decoding requests, in groups or alone.
        prefill: the other requests, their rows counted from the first prefill token.
        workspace: (tokens, latent_size), where decode gathers latents.
    """

    num_actual_tokens: int
    num_decodes: int
    num_decode_tokens: int
    num_prefills: int
    decode: list[DecodeGroup | DecodeRequest]
    prefill: list[PrefillRequest]
    workspace: torch.Tensor


class LatentMetadataBuilder(AttentionMetadataBuilder[LatentMetadata]):
    """Plans a step once for all layers of a cache group."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER
    reorder_batch_threshold: int = 1

    def __init__(
        self, kv_cache_spec: KVCacheSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        assert isinstance(kv_cache_spec, MLAAttentionSpec | SlidingWindowMLASpec)
        self.block_size = kv_cache_spec.block_size
        self.window = kv_cache_spec.sliding_window if isinstance(kv_cache_spec, SlidingWindowMLASpec) else None
        self.workspace = torch.empty(
            latent_plan.DECODE_TOKENS,
            kv_cache_spec.head_size,
            dtype=kv_cache_spec.dtype,
            device=device,
        )
        report_capacity(vllm_config)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> LatentMetadata:
        """Plan a step."""
        common = common_attn_metadata
        decodes, prefills, decode_tokens, _ = split_decodes_and_prefills(common, self.reorder_batch_threshold)
        seq_lens = common.seq_lens[: common.num_reqs].tolist()
        starts = (common.query_start_loc_cpu[decodes : common.num_reqs + 1] - decode_tokens).tolist()
        table = common.block_table_tensor
        return LatentMetadata(
            num_actual_tokens=common.num_actual_tokens,
            num_decodes=decodes,
            num_decode_tokens=decode_tokens,
            num_prefills=prefills,
            decode=latent_plan.plan_decode(table[:decodes], seq_lens[:decodes], self.block_size, self.window)
            if decodes
            else [],
            prefill=latent_plan.plan_prefill(table[decodes:], seq_lens[decodes:], starts, self.block_size, self.window),
            workspace=self.workspace,
        )


class LatentBackend(AttentionBackend):
    """Names the parts of the backend to vLLM."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float16", "bfloat16", "float32"]

    @staticmethod
    def get_name() -> str:
        """Name in vLLM's logs."""
        return "TRILLION_LATENT"

    @staticmethod
    def get_impl_cls() -> type["LatentImpl"]:
        """The class that computes."""
        return LatentImpl

    @staticmethod
    def get_builder_cls() -> type[LatentMetadataBuilder]:
        """The class that plans."""
        return LatentMetadataBuilder

    @classmethod
    def is_mla(cls) -> bool:
        """The cache holds latents."""
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Yes."""
        return True


class LatentImpl(MLAAttentionImpl[LatentMetadata]):
    """One layer's attention: absorbed projections for decode, expanded keys and values for prefill."""

    supports_pcp = False
    cache_dtypes: ClassVar[list[Any]] = LatentBackend.supported_kv_cache_dtypes

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None,
        attn_type: str,
        kv_sharing_target_layer_name: str | None,
        *,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        qk_head_dim: int,
        v_head_dim: int,
        kv_b_proj: torch.nn.Module,
        **_: Any,
    ) -> None:
        refused = {
            "alibi_slopes": alibi_slopes,
            "logits_soft_cap": logits_soft_cap,
            "kv_sharing_target_layer_name": kv_sharing_target_layer_name,
            "attn_type": attn_type if attn_type != AttentionType.DECODER else None,
            "kv_cache_dtype": kv_cache_dtype if kv_cache_dtype not in self.cache_dtypes else None,
            "decode_context_parallel_size": self.dcp_world_size if self.dcp_world_size > 1 else None,
        }
        for name, value in refused.items():
            if value is not None:
                raise ConfigError(name, value, "left out: attention over windowed latents has no such form")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.window = sliding_window
        self.kv_lora_rank = kv_lora_rank
        self.qk_nope_head_dim = qk_nope_head_dim
        self.qk_rope_head_dim = qk_rope_head_dim
        self.qk_head_dim = qk_head_dim
        self.v_head_dim = v_head_dim
        self.kv_b_proj = kv_b_proj

    def pack(self, w_uk_t: torch.Tensor, w_uv: torch.Tensor) -> bool:
        """Pack the absorbed projections for vLLM's product of bfloat16 matrices, if that runs here.

        Args:
            w_uk_t: (heads, qk_nope_head_dim, kv_lora_rank).
            w_uv: (heads, kv_lora_rank, v_head_dim).
        """
        if w_uv.dtype != torch.bfloat16 or not torch.cpu._is_avx512_bf16_supported():
            return False
        if any(size % 32 for size in (self.qk_nope_head_dim, self.kv_lora_rank, self.v_head_dim)):
            return False
        # vLLM's layer looks for these two and the scale by name: (heads, outputs, inputs), unquantised.
        self._w_uk_packed, self._w_uv_packed = (
            torch.ops._C.convert_weight_packed(weight.transpose(1, 2).contiguous()) for weight in (w_uk_t, w_uv)
        )
        self._w_scale = None
        return True

    def do_kv_cache_update(
        self,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache_dtype: str,
        k_scale: torch.Tensor,
    ) -> None:
        """Write latents (tokens, kv_lora_rank) and rotary keys (tokens, 1, rope_dim) to their slots.

        Padding has slot -1.
        """
        if kv_cache.numel() == 0:
            return
        slots = slot_mapping.flatten()
        halves = kv_cache.dtype == kv_c_normed.dtype and kv_cache.dtype in (torch.bfloat16, torch.float16)
        if halves and _HAS_CACHE_KERNEL and not kv_cache.is_cuda:  # all that vLLM's kernel was built for
            ops.amx_mla_concat_and_cache(kv_c_normed[: len(slots)], k_pe[: len(slots)].squeeze(1), kv_cache, slots)
            return
        latents = torch.cat((kv_c_normed, k_pe.squeeze(1)), dim=-1)[: len(slots)].to(kv_cache.dtype)
        real = slots >= 0
        kv_cache.view(-1, self.head_size).index_copy_(0, slots[real].long(), latents[real])

    def forward_mqa(
        self,
        q: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: LatentMetadata,
        layer: AttentionLayer,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Decode: queries with absorbed projections to (requests, heads, kv_lora_rank)."""
        if isinstance(q, tuple):
            q = torch.cat(q, dim=-1)
        out = latent_attention.decode(
            q, kv_c_and_k_pe_cache.view(-1, self.head_size), attn_metadata.decode, self.scale, attn_metadata.workspace
        )
        return out[..., : self.kv_lora_rank], None

    def forward_mha(
        self,
        q: torch.Tensor,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: LatentMetadata,
        k_scale: torch.Tensor,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
    ) -> None:
        """Prefill: queries (tokens, heads, qk_head_dim) to ``output`` (tokens, heads x v_head_dim)."""
        latent_attention.prefill(
            q,
            kv_c_and_k_pe_cache.view(-1, self.head_size),
            attn_metadata.prefill,
            self._expand,
            self.window,
            self.scale,
            output.view(-1, self.num_heads, self.v_head_dim),
            cpu_prefill.attend,
        )

    def _expand(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`_project`, values padded with zeros to qk_head_dim."""
        k, v = self._project(latents)
        return k, torch.nn.functional.pad(v, (0, self.qk_head_dim - self.v_head_dim))

    def _project(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Every head's keys (keys, heads, qk_head_dim) and values (keys, heads, v_head_dim)."""
        compressed, k_rope = latents.split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        expanded = self.kv_b_proj(compressed.contiguous())[0].view(len(latents), self.num_heads, -1)
        k_nope, v = expanded.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        return torch.cat((k_nope, k_rope.unsqueeze(1).expand(-1, self.num_heads, -1)), dim=-1), v
