"""Attention over a paged cache of latents, in plain PyTorch: what the engine's backend computes with.

Decode attends to the latents themselves (absorbed projections). Requests of similar length gather theirs together;
one that decodes alone reads the cache in place wherever its blocks are neighbours. Prefill projects the visible
latents up to every head's keys and values. :mod:`latent_plan` says which latents.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from trillion_serve.plugins.vllm.latent_plan import DecodeGroup, DecodeRequest, PrefillRequest

QUERY_BLOCK = 128
"""Queries that attend at once in prefill: bounds a mask at QUERY_BLOCK x (QUERY_BLOCK + visible keys)."""

Expand = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Latents with rotary keys (keys, latent_size) to keys and values (keys, heads, head_dim), of one head size."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, int | None, float, torch.Tensor], None]
"""As :func:`banded_attention`."""


def decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: Sequence[DecodeGroup | DecodeRequest],
    scale: float,
    workspace: torch.Tensor,
) -> torch.Tensor:
    """One query a request over its latents.

    Args:
        q: (requests, heads, latent_size), queries with the key projection absorbed.
        cache: (slots, latent_size).
        plan: from :func:`latent_plan.plan_decode`.
        scale: factor on scores.
        workspace: (any, latent_size), as large as the largest group and PIECE_TOKENS, so that no step needs fresh
            memory.

    Returns:
        (requests, heads, latent_size); the caller drops what belongs to the rotary key.
    """
    out = torch.empty_like(q)
    for part in plan:
        if isinstance(part, DecodeRequest):
            _decode_alone(q[part.row], cache, part.pieces, scale, workspace, out[part.row])
            continue
        gathered = workspace[: len(part.slots)]
        torch.index_select(cache, 0, part.slots, out=gathered)
        latents = gathered.view(len(part.rows), 1, -1, q.shape[-1])  # (group, 1, longest, latent_size)
        # One "head" of many queries, keys and values the same tensor: the fused kernel takes it without a copy.
        out[part.rows] = F.scaled_dot_product_attention(
            q[part.rows].unsqueeze(1), latents, latents, attn_mask=part.mask, scale=scale
        ).squeeze(1)
    return out


def _decode_alone(
    q: torch.Tensor,
    cache: torch.Tensor,
    pieces: Sequence[slice | torch.Tensor],
    scale: float,
    workspace: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """One request's query (heads, latent_size), over pieces of its latents: an online softmax, written to ``out``.

    Two matrix products with all heads use every thread for one request, which the fused kernel does not.
    """
    highest = q.new_full((len(q), 1), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(highest)
    result = torch.zeros_like(q, dtype=torch.float32)
    for piece in pieces:
        if isinstance(piece, slice):
            latents = cache[piece]
        else:
            latents = workspace[: len(piece)]
            torch.index_select(cache, 0, piece, out=latents)
        scores = torch.mm(q, latents.T).float().mul_(scale)  # (heads, piece)
        new_highest = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights = scores.sub_(new_highest).exp_()
        fade = (highest - new_highest).exp_()
        total.mul_(fade).add_(weights.sum(-1, keepdim=True))
        result.mul_(fade).add_(torch.mm(weights.to(q.dtype), latents))
        highest = new_highest
    out.copy_(result.div_(total))


def prefill(
    q: torch.Tensor,
    cache: torch.Tensor,
    requests: Sequence[PrefillRequest],
    expand: Expand,
    window: int | None,
    scale: float,
    out: torch.Tensor,
    attend: Attend | None = None,
) -> None:
    """Attend from each request's new tokens and write into ``out``.

    Args:
        q: (tokens, heads, qk_head_dim).
        cache: (slots, latent_size), the new tokens' latents written already.
        requests: from :func:`latent_plan.plan_prefill`.
        expand: see :data:`Expand`.
        window: keys that a query sees, or None for all.
        scale: factor on scores.
        out: (tokens, heads, v_head_dim).
        attend: what attends, :func:`banded_attention` if None.
    """
    attend = attend or banded_attention
    for request in requests:
        k, v = expand(cache[request.slots])
        attend(q[request.rows], k, v, request.offset, window, scale, out[request.rows])


def banded_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offset: int,
    window: int | None,
    scale: float,
    out: torch.Tensor,
    query_block: int = QUERY_BLOCK,
) -> None:
    """Causal attention in blocks of queries; query i is at position ``offset + i`` of the keys.

    Args:
        q: (queries, heads, head_dim).
        k, v: (keys, heads, head_dim): values padded to the keys' size, which the fused kernel asks for.
        offset: keys that precede the first query.
        window: keys that a query sees, itself included, or None for all before it.
        scale: factor on scores.
        out: (queries, heads, v_head_dim), written.
    """
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1, heads, tokens, head_dim)
    queries = q.shape[2]
    for start in range(0, queries, query_block):
        stop = min(start + query_block, queries)
        first = 0 if window is None else max(0, offset + start - window + 1)
        end = offset + stop
        position = torch.arange(offset + start, end, device=q.device)[:, None]
        key = torch.arange(first, end, device=q.device)[None]
        mask = key <= position  # (block, keys)
        if window is not None:
            mask &= key > position - window
        block = F.scaled_dot_product_attention(
            q[:, :, start:stop], k[:, :, first:end], v[:, :, first:end], attn_mask=mask, scale=scale
        )
        out[start:stop] = block[0, ..., : out.shape[-1]].transpose(0, 1)
