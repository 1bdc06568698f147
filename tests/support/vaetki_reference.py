"""VAETKI written out plainly, to compare every faster path with: full masks, no cache, one expert at a time.

Source: VAETKI report, section 2.1. It reads the published tensor names and shares no code with the project.
"""

import math
from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]


def reference_logits(config, weights: Weights, input_ids: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Logits (seq, vocab) of one sequence ``input_ids`` (seq,), in the dtype of ``weights``.

    ``window`` replaces the configuration's, for negative controls.
    """
    window = window or config.sliding_window
    x = weights["model.embed_tokens.weight"][input_ids]
    for i in range(config.num_hidden_layers):
        layer = {
            name.removeprefix(f"model.layers.{i}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{i}.")
        }

        def norm(name: str, value: torch.Tensor, layer=layer) -> torch.Tensor:
            return _norm(value, layer[f"{name}.weight"], config.rms_norm_eps)

        local = config.layer_types[i] == "sliding_attention"
        attended = _attention(config, layer, norm("input_layernorm", x), window if local else None)
        x = x + norm("post_attention_layernorm", attended)
        fed = _feed_forward(config, layer, norm("pre_mlp_layernorm", x))
        x = x + norm("post_mlp_layernorm", fed)
    return _norm(x, weights["model.norm.weight"], config.rms_norm_eps) @ weights["lm_head.weight"].T


def reference_greedy(config, weights: Weights, prompt: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """``prompt`` (seq,) and the tokens that greedy decoding appends, the whole forward anew for each."""
    ids = prompt
    for _ in range(max_new_tokens):
        ids = torch.cat([ids, reference_logits(config, weights, ids)[-1:].argmax(-1)])
    return ids


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return (1 + weight) * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def _rotate(config, x: torch.Tensor, local: bool) -> torch.Tensor:
    """Turn the pairs (0, 1), (2, 3) ... of ``x`` (seq, heads, rope_dim); first members come first."""
    dim = x.shape[-1]
    base = config.rope_theta if local else config.rope_theta_global
    turns, magnitude = [base ** (-2 * pair / dim) for pair in range(dim // 2)], 1.0
    if not local:
        turns, magnitude = _scaled(config, turns, base, dim)
    angles = torch.tensor([[p * turn for turn in turns] for p in range(x.shape[0])], dtype=x.dtype)[:, None]
    cos, sin = magnitude * angles.cos(), magnitude * angles.sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], -1)


def _scaled(config, turns: list[float], base: float, dim: int) -> tuple[list[float], float]:
    """A global layer's angles a position, and the factor on what is turned: positions interpolated, or YaRN.

    YaRN leaves pairs that turn 32 times and more in the first context as they are, interpolates those that turn once at
    most, and blends the others by their place between.
    """
    yarn = config.rope_scaling
    if yarn is None:
        return [turn / config.global_position_scale for turn in turns], 1.0
    context, factor = yarn["original_max_position_embeddings"], yarn["factor"]
    first, last = (dim / 2 * math.log(context / (times * 2 * math.pi), base) for times in (32, 1))
    first, last = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
    shares = [min(max((pair - first) / (last - first), 0), 1) for pair in range(dim // 2)]
    turns = [turn * (1 - share) + turn / factor * share for turn, share in zip(turns, shares, strict=True)]
    return turns, _grown(factor, yarn["mscale"]) / _grown(factor, yarn["mscale_all_dim"])


def _grown(factor: float, mscale: float) -> float:
    return 1 + 0.1 * mscale * math.log(factor)


def _attention(config, layer: Weights, x: torch.Tensor, window: int | None) -> torch.Tensor:
    seq, heads = x.shape[0], config.num_attention_heads
    nope, rope, rank = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank
    local = window is not None

    q = _norm(x @ layer["self_attn.q_a_proj.weight"].T, layer["self_attn.q_a_layernorm.weight"], config.rms_norm_eps)
    q = (q @ layer["self_attn.q_b_proj.weight"].T).view(seq, heads, nope + rope)
    q = torch.cat([q[..., :nope], _rotate(config, q[..., nope:], local)], -1)

    shared = x @ layer["self_attn.kv_a_proj_with_mqa.weight"].T
    latent = _norm(shared[:, :rank], layer["self_attn.kv_a_layernorm.weight"], config.rms_norm_eps)
    k_rope = _rotate(config, shared[:, None, rank:], local).expand(-1, heads, -1)
    kv = (latent @ layer["self_attn.kv_b_proj.weight"].T).view(seq, heads, nope + config.v_head_dim)
    k, v = torch.cat([kv[..., :nope], k_rope], -1), kv[..., nope:]

    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(nope + rope)
    if config.rope_scaling is not None and not local:
        scores = scores * _grown(config.rope_scaling["factor"], config.rope_scaling["mscale_all_dim"]) ** 2
    query, key = torch.arange(seq)[:, None], torch.arange(seq)[None]
    seen = key <= query
    if window is not None:
        seen &= key >= query - (window - 1)
    probabilities = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", probabilities, v).reshape(seq, -1) @ layer["self_attn.o_proj.weight"].T


def _swiglu(layer: Weights, prefix: str, x: torch.Tensor) -> torch.Tensor:
    gate = x @ layer[f"{prefix}.gate_proj.weight"].T
    return (gate * torch.sigmoid(gate) * (x @ layer[f"{prefix}.up_proj.weight"].T)) @ layer[
        f"{prefix}.down_proj.weight"
    ].T


def _feed_forward(config, layer: Weights, x: torch.Tensor) -> torch.Tensor:
    if "mlp.gate_proj.weight" in layer:
        return _swiglu(layer, "mlp", x)
    out = _swiglu(layer, "mlp.shared_experts", x)
    scores = torch.sigmoid(x @ layer["mlp.gate.weight"].T)
    for t in range(x.shape[0]):
        best = scores[t].argsort(descending=True)[: config.num_experts_per_tok]
        share = scores[t, best] / scores[t, best].sum() if config.norm_topk_prob else scores[t, best]
        for expert, weight in zip(best.tolist(), share, strict=True):
            routed = _swiglu(layer, f"mlp.experts.{expert}", x[t : t + 1])
            out[t] = out[t] + weight * config.routed_scaling_factor * routed[0]
    return out
