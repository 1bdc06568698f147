"""Rotary position embeddings (VAETKI report, sections 2.1, 3.2; Trillion 7B report, section 3.4).

VAETKI's published weights pair neighbouring numbers, (0, 1), (2, 3) and so on; Llama-like weights pair a number of the
first half with the one at the same place in the second. Rotated vectors have all first members of the pairs in their
first half and all second members in their second half, either way. Scores do not depend on that order as long as query
and key share it, and the cache holds keys in it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import initialization as init

from trillion_model.layers.initial import OwnInitial


@dataclass(frozen=True)
class RopeParameters:
    """What turns positions into rotations.

    Attributes:
        inv_freq: angle a position of each pair, float32, shape (rope_dim / 2,); on a CPU, whatever torch's default
            device is, so that there are numbers to take where modules are built without any.
        magnitude: factor on cosines and sines; 1 without YaRN.
        score_scale: factor on the softmax scale; 1 without YaRN.
    """

    inv_freq: torch.Tensor
    magnitude: float = 1.0
    score_scale: float = 1.0


def rope_parameters(
    dim: int, theta: float, *, position_scale: float = 1.0, scaling: dict[str, Any] | None = None
) -> RopeParameters:
    """Frequencies of one kind of layer.

    Args:
        dim: rotary size of a head.
        theta: RoPE base.
        position_scale: positions are divided by this; ignored where ``scaling`` is given.
        scaling: a validated ``rope_scaling`` of type ``linear`` or ``yarn``, or None.
    """
    pairs = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu")
    inv_freq = theta ** (-pairs / dim)
    if scaling is None:
        return RopeParameters(inv_freq / position_scale)
    if scaling.get("rope_type", scaling.get("type")) == "linear":
        return RopeParameters(inv_freq / scaling["factor"])
    return _yarn(inv_freq, dim, theta, scaling)


def _yarn(inv_freq: torch.Tensor, dim: int, theta: float, scaling: dict[str, Any]) -> RopeParameters:
    """YaRN as DeepSeek-V3 parameterises it: slow pairs are interpolated, fast ones kept, a ramp between."""
    factor = float(scaling["factor"])
    context = scaling.get("original_max_position_embeddings", 4096)

    def pair_turning(times: float) -> float:
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.get("beta_fast", 32))), 0)
    high = min(math.ceil(pair_turning(scaling.get("beta_slow", 1))), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 1e-3)).clamp(0, 1)
    blended = inv_freq / factor * ramp + inv_freq * (1 - ramp)
    all_dim = _magnitude(factor, scaling.get("mscale_all_dim", 0))
    return RopeParameters(blended, _magnitude(factor, scaling.get("mscale", 1)) / all_dim, all_dim**2)


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class RotaryEmbedding(OwnInitial):
    """Cosines and sines of positions, in float32."""

    inv_freq: torch.Tensor

    def __init__(self, parameters: RopeParameters) -> None:
        super().__init__()
        self.rope = parameters
        self.register_buffer("inv_freq", parameters.inv_freq.to(torch.get_default_device()), persistent=False)

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``position_ids`` (batch, seq) to cosines and sines, each (batch, seq, rope_dim / 2)."""
        angles = position_ids[..., None].float() * self.inv_freq.float()
        return angles.cos() * self.rope.magnitude, angles.sin() * self.rope.magnitude

    def initialise(self, std: float) -> None:
        init.copy_(self.inv_freq, self.rope.inv_freq)


def rotate_interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring pairs of ``x`` and write them out as halves.

    Args:
        x: (batch, heads, seq, rope_dim).
        cos, sin: (batch, seq, rope_dim / 2).
    """
    return _rotate(x, x[..., 0::2], x[..., 1::2], cos, sin)


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn pairs of the two halves of ``x``; shapes as for :func:`rotate_interleaved`."""
    first, second = x.chunk(2, dim=-1)
    return _rotate(x, first, second, cos, sin)


def _rotate(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    first, second = first.float(), second.float()
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (batch, 1, seq, rope_dim / 2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
