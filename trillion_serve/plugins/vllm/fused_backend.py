"""vLLM's attention backend for windowed latents on a GPU: our decode kernel, FlashAttention for prefill.

Prefill gathers what a step's new tokens see, windows and all, projects it up to every head's keys and values and
attends with :mod:`windowed_flash`, or in plain PyTorch where FlashAttention does not run. Decode is
:mod:`latent_decode`. A step is planned without waiting for the device: its exact lengths stay there, and the host
sizes memory by the bounds that it knows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from vllm.config import VllmConfig
from vllm.utils.torch_utils import is_quantized_kv_cache
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionLayer,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MLAAttentionImpl,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import KVCacheSpec, SlidingWindowMLASpec

from trillion_serve.plugins.vllm import latent_attention, latent_decode
from trillion_serve.plugins.vllm.backend import LatentBackend, LatentImpl
from trillion_serve.plugins.vllm.capacity import report_capacity


@dataclass
class FusedDecode:
    """What decode reads: the runner's own buffers, so that a captured graph sees each step's contents.

    Attributes:
        block_table: (requests, blocks).
        seq_lens: (requests,), 0 where a slot is empty.
    """

    block_table: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True)
class PrefillChunk:
    """Requests whose visible latents are projected up together.

    Attributes:
        rows: their queries among the step's prefill tokens.
        blocks, offsets: where the latents are, (keys,) each; request after request, the end repeated if the host's
            bound is above the true length.
        query_starts, key_starts: (requests + 1,), cumulative.
        most_queries, most_keys: of a request, at most.
    """

    rows: slice
    blocks: torch.Tensor
    offsets: torch.Tensor
    query_starts: torch.Tensor
    key_starts: torch.Tensor
    most_queries: int
    most_keys: int


@dataclass
class FusedMetadata(AttentionMetadata):
    """A step's plan for one cache group; decoding requests come first in the batch.

    Attributes:
        num_actual_tokens: tokens of the step, padding of a captured batch included.
        num_decodes, num_decode_tokens: requests that decode, and their tokens: as many for each.
        num_prefills: the others.
        decode, prefill: what these read.
        flash: what attends in prefill; None for plain PyTorch.
    """

    num_actual_tokens: int
    num_decodes: int
    num_decode_tokens: int
    num_prefills: int
    decode: FusedDecode | None
    prefill: list[PrefillChunk]
    flash: "WindowedPrefill | None"


class WindowedPrefill(ABC):
    """A prefill backend of vLLM's that attends within a window."""

    @abstractmethod
    def clone(self) -> "WindowedPrefill":
        """Another of the same: vLLM's backends may keep what belongs to a step."""

    @abstractmethod
    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chunk: PrefillChunk, window: int
    ) -> torch.Tensor:
        """Attend from queries to a chunk's keys and values.

        Args:
            q: (queries, heads, qk_head_dim).
            k: (keys, heads, qk_head_dim).
            v: (keys, heads, v_head_dim).
            chunk: which of them belong together; a request's queries are its last tokens.
            window: keys that a query sees, itself included.

        Returns:
            (queries, heads, v_head_dim or more): what goes beyond it is to be dropped.
        """


class FusedMetadataBuilder(AttentionMetadataBuilder[FusedMetadata]):
    """Plans a step once for all layers of a cache group.

    Batches that only decode, with as many tokens a request, can be captured whole: their plan is two views.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(
        self, kv_cache_spec: KVCacheSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        assert isinstance(kv_cache_spec, SlidingWindowMLASpec)
        self.block_size = kv_cache_spec.block_size
        self.window = kv_cache_spec.sliding_window
        layer = vllm_config.compilation_config.static_forward_context[layer_names[0]]
        self.most_keys = layer.chunked_prefill_workspace_size  # vLLM leaves room to project as many latents up
        flash = layer.prefill_backend
        self.flash = flash.clone() if isinstance(flash, WindowedPrefill) else None
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=True)
        report_capacity(vllm_config)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> FusedMetadata:
        """Plan a step."""
        common = common_attn_metadata
        assert self.reorder_batch_threshold is not None
        decodes, prefills, decode_tokens, _ = split_decodes_and_prefills(
            common, self.reorder_batch_threshold, require_uniform=True
        )
        table = common.block_table_tensor
        return FusedMetadata(
            num_actual_tokens=common.num_actual_tokens,
            num_decodes=decodes,
            num_decode_tokens=decode_tokens,
            num_prefills=prefills,
            decode=FusedDecode(table[:decodes], common.seq_lens[:decodes]) if decodes else None,
            prefill=self._plan_prefill(common, decodes) if prefills else [],
            flash=self.flash,
        )

    def _plan_prefill(self, common: CommonAttentionMetadata, decodes: int) -> list[PrefillChunk]:
        bounds = common.seq_lens_cpu_upper_bound
        assert bounds is not None
        return plan_prefill(
            common.block_table_tensor[decodes : common.num_reqs],
            common.seq_lens[decodes : common.num_reqs],
            common.query_start_loc[decodes : common.num_reqs + 1],
            bounds[decodes : common.num_reqs].tolist(),
            common.query_start_loc_cpu[decodes : common.num_reqs + 1].tolist(),
            self.block_size,
            self.window,
            self.most_keys,
        )


def plan_prefill(
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    query_starts: torch.Tensor,
    seq_len_bounds: list[int],
    host_query_starts: list[int],
    block_size: int,
    window: int,
    most_keys: int,
) -> list[PrefillChunk]:
    """Cut requests into chunks that read at most ``most_keys`` latents or are one request.

    Args:
        block_table: (requests, blocks).
        seq_lens: (requests,), exact, on the device.
        query_starts: (requests + 1,), on the device; rows are counted from the first.
        seq_len_bounds: of each request, on the host, no less than ``seq_lens``.
        host_query_starts: as ``query_starts``.
        block_size: tokens of a block.
        window: keys that a query sees.
        most_keys: see above.
    """
    queries = [stop - start for start, stop in pairwise(host_query_starts)]
    keys = [min(bound, count + window - 1) for bound, count in zip(seq_len_bounds, queries, strict=True)]
    cuts = [0]
    held = 0
    for request, count in enumerate(keys):
        if held + count > most_keys and request > cuts[-1]:
            cuts.append(request)
            held = 0
        held += count
    cuts.append(len(keys))

    device = seq_lens.device
    chunks = []
    for start, stop in pairwise(cuts):
        starts = query_starts[start : stop + 1] - query_starts[start]
        lengths = seq_lens[start:stop]
        visible = lengths.minimum(starts.diff() + window - 1)  # (requests,)
        key_starts = torch.nn.functional.pad(visible.cumsum(0, dtype=torch.int32), (1, 0))
        index = torch.arange(sum(keys[start:stop]), device=device)
        owner = torch.searchsorted(key_starts[1:], index, right=True).clamp_(max=stop - start - 1)  # (keys,)
        position = (lengths - visible)[owner] + index - key_starts[owner]
        position = position.minimum(lengths[owner] - 1)
        chunks.append(
            PrefillChunk(
                rows=slice(
                    host_query_starts[start] - host_query_starts[0], host_query_starts[stop] - host_query_starts[0]
                ),
                blocks=block_table[start + owner, position // block_size].long(),
                offsets=position % block_size,
                query_starts=starts.to(torch.int32),
                key_starts=key_starts,
                most_queries=max(queries[start:stop]),
                most_keys=max(keys[start:stop]),
            )
        )
    return chunks


class FusedBackend(LatentBackend):
    """Names the parts of the backend to vLLM."""

    supported_kv_cache_dtypes: ClassVar[list[Any]] = [*LatentBackend.supported_kv_cache_dtypes, "fp8", "fp8_e4m3"]

    @staticmethod
    def get_name() -> str:
        """Name in vLLM's logs."""
        return "TRILLION_FUSED_LATENT"

    @staticmethod
    def get_impl_cls() -> type["FusedImpl"]:
        """The class that computes."""
        return FusedImpl

    @staticmethod
    def get_builder_cls() -> type[FusedMetadataBuilder]:
        """The class that plans."""
        return FusedMetadataBuilder


class FusedImpl(LatentImpl):
    """One windowed layer's attention."""

    cache_dtypes: ClassVar[list[Any]] = FusedBackend.supported_kv_cache_dtypes

    def do_kv_cache_update(
        self,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache_dtype: str,
        k_scale: torch.Tensor,
    ) -> None:
        """Write latents to their slots: vLLM's kernel, which a captured graph can hold and a CPU lacks."""
        write = MLAAttentionImpl.do_kv_cache_update if kv_cache.is_cuda else LatentImpl.do_kv_cache_update
        write(self, kv_c_normed, k_pe, kv_cache, slot_mapping, kv_cache_dtype, k_scale)

    def forward_mqa(
        self,
        q: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: Any,
        layer: AttentionLayer,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Decode: queries with absorbed projections to (tokens, heads, kv_lora_rank)."""
        assert self.window is not None
        out = latent_decode.decode(
            torch.cat(q, dim=-1) if isinstance(q, tuple) else q,
            kv_c_and_k_pe_cache,
            attn_metadata.decode.block_table,
            attn_metadata.decode.seq_lens,
            rank=self.kv_lora_rank,
            scale=self.scale,
            window=self.window,
            longest=self.window,
            cache_scale=layer._k_scale if is_quantized_kv_cache(self.kv_cache_dtype) else None,
        )
        return out, None

    def forward_mha(
        self,
        q: torch.Tensor,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: Any,
        k_scale: torch.Tensor,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
    ) -> None:
        """Prefill: queries (tokens, heads, qk_head_dim) to ``output`` (tokens, heads x v_head_dim)."""
        assert self.window is not None
        out = output.view(-1, self.num_heads, self.v_head_dim)
        for chunk in attn_metadata.prefill:
            latents = kv_c_and_k_pe_cache[chunk.blocks, chunk.offsets].to(q.dtype)
            if is_quantized_kv_cache(self.kv_cache_dtype):
                latents = latents * k_scale.to(q.dtype)
            rows, flash = chunk.rows, attn_metadata.flash
            if flash is None:
                self._attend_plainly(q[rows], latents, chunk, out[rows])
            else:
                k, v = self._project(latents)
                out[rows] = flash.attend(q[rows], k, v, chunk, self.window)[..., : self.v_head_dim]

    def _attend_plainly(self, q: torch.Tensor, latents: torch.Tensor, chunk: PrefillChunk, out: torch.Tensor) -> None:
        k, v = self._expand(latents)
        requests = zip(pairwise(chunk.query_starts.tolist()), pairwise(chunk.key_starts.tolist()), strict=True)
        for (first, last), (start, stop) in requests:
            offset = stop - start - (last - first)
            latent_attention.banded_attention(
                q[first:last], k[start:stop], v[start:stop], offset, self.window, self.scale, out[first:last]
            )
