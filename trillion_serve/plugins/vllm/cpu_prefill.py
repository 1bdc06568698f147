"""Prefill by vLLM's attention kernel for CPUs, over one request's keys and values in pages of their own."""

import torch
import torch.nn.functional as F
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, _get_attn_isa

PAGE = 128
"""Keys of a page."""


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offset: int,
    window: int | None,
    scale: float,
    out: torch.Tensor,
) -> None:
    """As :func:`latent_attention.banded_attention`: query i, of as many as there are keys after ``offset``.

    Args:
        q: (queries, heads, head_dim).
        k, v: (keys, heads, head_dim).
        offset: keys that precede the first query.
        window: keys that a query sees, itself included, or None for all before it.
        scale: factor on scores.
        out: (queries, heads, v_head_dim), written.
    """
    keys, heads, _ = k.shape
    assert keys == offset + len(q)
    q, k, v = (_padded(x) for x in (q, k, v))
    kernel = _get_attn_isa(q.dtype, PAGE, q.shape[-1])
    # Both fit pages of this size; benchmarks/attention_engine.py tells which is quicker.
    if kernel == "vec":
        kernel = "vec16"
    pages = -(-keys // PAGE)
    scratch = k.new_empty(pages, heads, 2 * PAGE, k.shape[-1])
    scratch[-1].zero_()  # the kernel multiplies by what follows the last key, with a weight of 0
    key_pages, value_pages = scratch.chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(k, v, key_pages, value_pages, torch.arange(keys), kernel)
    query_starts = torch.tensor([0, len(q)], dtype=torch.int32)
    seq_lens = torch.tensor([keys], dtype=torch.int32)
    schedule = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=q.shape[-1],
        seq_lens=seq_lens,
        dtype=q.dtype,
        query_start_loc=query_starts,
        causal=True,
        sliding_window_size=window or -1,
        isa=kernel,
        enable_kv_split=True,
    )
    attended = torch.empty_like(q)
    ops.cpu_attention_with_kv_cache(
        query=q,
        key_cache=key_pages,
        value_cache=value_pages,
        output=attended,
        query_start_loc=query_starts,
        seq_lens=seq_lens,
        scale=scale,
        causal=True,
        alibi_slopes=None,
        sliding_window=window or -1,
        block_table=torch.arange(pages, dtype=torch.int32)[None],
        softcap=0.0,
        scheduler_metadata=schedule,
        s_aux=None,
    )
    out.copy_(attended[..., : out.shape[-1]])


def _padded(x: torch.Tensor) -> torch.Tensor:
    """(tokens, heads, head_dim) with zeros up to a head size that the kernel was built for."""
    size = x.shape[-1]
    enough = min(built for built in CPUAttentionBackend.get_supported_head_sizes() if built >= size)
    return F.pad(x, (0, enough - size)) if enough > size else x
