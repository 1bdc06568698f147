"""Tri-70B written out plainly, to compare every faster path with: full masks, no cache.

Source: the model card of Tri-70B-preview-SFT. It reads the published tensor names and shares no code with the project.
"""

import math
from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]


def reference_logits(
    config, weights: Weights, input_ids: torch.Tensor, window: int | None = None, attn_scale: float | None = None
) -> torch.Tensor:
    """Logits (seq, vocab) of one sequence ``input_ids`` (seq,), in the dtype of ``weights``.

    ``window`` and ``attn_scale`` replace the configuration's, for negative controls.
    """
    window = config.sliding_window if window is None else window
    attn_scale = config.attn_scale if attn_scale is None else attn_scale
    x = weights["model.embed_tokens.weight"][input_ids]
    for i in range(config.num_hidden_layers):
        layer = {
            name.removeprefix(f"model.layers.{i}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{i}.")
        }
        local = (i + 1) % config.global_attention_freq != 0
        normed = _norm(x, layer["input_layernorm.weight"], config.rms_norm_eps)
        x = x + _attention(config, layer, normed, window if local else None, attn_scale)
        normed = _norm(x, layer["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = normed @ layer["mlp.gate_proj.weight"].T
        fed = gate * torch.sigmoid(gate) * (normed @ layer["mlp.up_proj.weight"].T)
        x = x + fed @ layer["mlp.down_proj.weight"].T
    return _norm(x, weights["model.norm.weight"], config.rms_norm_eps) @ weights["lm_head.weight"].T


def reference_greedy(config, weights: Weights, prompt: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """``prompt`` (seq,) and the tokens that greedy decoding appends, the whole forward anew for each."""
    ids = prompt
    for _ in range(max_new_tokens):
        ids = torch.cat([ids, reference_logits(config, weights, ids)[-1:].argmax(-1)])
    return ids


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def _rotate(config, x: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (0, d / 2), (1, d / 2 + 1) ... of ``x`` (seq, heads, d)."""
    dim = x.shape[-1]
    angles = torch.tensor(
        [[p / config.rope_theta ** (2 * pair / dim) for pair in range(dim // 2)] for p in range(x.shape[0])],
        dtype=x.dtype,
    )[:, None]
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def _attention(config, layer: Weights, x: torch.Tensor, window: int | None, attn_scale: float) -> torch.Tensor:
    seq, dim = x.shape[0], config.head_dim
    q, k, v = ((x @ layer[f"self_attn.{name}_proj.weight"].T).view(seq, -1, dim) for name in "qkv")
    if window is not None:
        q, k = _rotate(config, q), _rotate(config, k)
    else:
        factors = [1 + attn_scale * math.log(1 + math.floor((p + 1) / config.floor_scale)) for p in range(seq)]
        q = q * torch.tensor(factors, dtype=x.dtype)[:, None, None]
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)

    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(dim)
    query, key = torch.arange(seq)[:, None], torch.arange(seq)[None]
    seen = key <= query
    if window is not None:
        seen &= key >= query - (window - 1)
    probabilities = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", probabilities, v).reshape(seq, -1) @ layer["self_attn.o_proj.weight"].T
