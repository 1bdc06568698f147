"""Trillion-7B written out plainly, to compare every faster path with: full masks, no cache, one head at a time.

Source: Trillion 7B report, section 3.4. It reads the published tensor names and shares no code with the project.
"""

import math
from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]


def reference_logits(
    config,
    weights: Weights,
    input_ids: torch.Tensor,
    *,
    theta: float | None = None,
    without: str | None = None,
) -> torch.Tensor:
    """Logits (seq, vocab) of one sequence ``input_ids`` (seq,), in the dtype of ``weights``.

    For negative controls, ``theta`` replaces the RoPE base and ``without`` names a norm that every layer leaves out.
    """
    x = final_states(config, weights, input_ids, theta=theta, without=without)
    return x @ weights["lm_head.weight"].T


def final_states(
    config, weights: Weights, input_ids: torch.Tensor, *, theta: float | None = None, without: str | None = None
) -> torch.Tensor:
    """The last layer's states (seq, hidden), normalised."""
    x = weights["model.embed_tokens.weight"][input_ids]
    for i in range(config.num_hidden_layers):
        layer = _under(weights, f"model.layers.{i}.")
        x = decoder_layer(config, layer, x, theta=theta or config.rope_theta, without=without)
    return _norm(x, weights["model.norm.weight"], config.rms_norm_eps)


def decoder_layer(config, layer: Weights, x: torch.Tensor, *, theta: float, without: str | None = None) -> torch.Tensor:
    """One layer over (seq, hidden)."""

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        return value if name == without else _norm(value, layer[f"{name}.weight"], config.rms_norm_eps)

    x = x + norm("post_attention_layernorm", _attention(config, layer, norm("input_layernorm", x), theta))
    return x + norm("post_mlp_layernorm", _swiglu(layer, norm("pre_mlp_layernorm", x)))


def reference_greedy(config, weights: Weights, prompt: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """``prompt`` (seq,) and the tokens that greedy decoding appends, the whole forward anew for each."""
    ids = prompt
    for _ in range(max_new_tokens):
        ids = torch.cat([ids, reference_logits(config, weights, ids)[-1:].argmax(-1)])
    return ids


def reference_mtp_logits(config, weights: Weights, mtp: Weights, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits (seq - 1, vocab), at place p those for token p + 2, by the tensors ``mtp`` of the added module."""
    states = _norm(final_states(config, weights, input_ids)[:-1], mtp["hidden_layernorm.weight"], config.rms_norm_eps)
    following = _norm(
        weights["model.embed_tokens.weight"][input_ids[1:]], mtp["embedding_layernorm.weight"], config.rms_norm_eps
    )
    x = torch.cat([states, following], -1) @ mtp["projection.weight"].T
    x = decoder_layer(config, _under(mtp, "layer."), x, theta=config.rope_theta)
    return _norm(x, mtp["norm.weight"], config.rms_norm_eps) @ weights["lm_head.weight"].T


def _under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def _rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Turn the pairs (0, d / 2), (1, d / 2 + 1) ... of ``x`` (seq, d)."""
    seq, dim = x.shape
    angles = torch.tensor(
        [[position / theta ** (2 * pair / dim) for pair in range(dim // 2)] for position in range(seq)], dtype=x.dtype
    )
    first, second = x[:, : dim // 2], x[:, dim // 2 :]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def _attention(config, layer: Weights, x: torch.Tensor, theta: float) -> torch.Tensor:
    seq, heads = x.shape[0], config.num_attention_heads
    queries = (x @ layer["self_attn.q_proj.weight"].T).view(seq, heads, config.head_dim)
    keys = (x @ layer["self_attn.k_proj.weight"].T).view(seq, config.num_key_value_heads, config.head_dim)
    values = (x @ layer["self_attn.v_proj.weight"].T).view(seq, config.num_key_value_heads, config.head_dim)
    seen = torch.arange(seq)[None] <= torch.arange(seq)[:, None]
    out = []
    for head in range(heads):
        shared = head * config.num_key_value_heads // heads
        scores = _rotate(queries[:, head], theta) @ _rotate(keys[:, shared], theta).T / math.sqrt(config.head_dim)
        out.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values[:, shared])
    return torch.cat(out, -1) @ layer["self_attn.o_proj.weight"].T


def _swiglu(layer: Weights, x: torch.Tensor) -> torch.Tensor:
    gate = x @ layer["mlp.gate_proj.weight"].T
    return (gate * torch.sigmoid(gate) * (x @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
