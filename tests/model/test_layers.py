"""Norm and rotary embedding against their formulas, in float64."""

import math

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trillion_model.layers.norm import ZeroCentredRMSNorm
from trillion_model.layers.rope import RotaryEmbedding, rope_parameters, rotate_halves, rotate_interleaved


def test_the_norm_is_zero_centred_with_float32_statistics():
    norm = ZeroCentredRMSNorm(32, eps=1e-5)
    assert norm.weight.abs().sum() == 0
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 32) * 100
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + norm.weight.double())
    torch.testing.assert_close(norm(x).double(), exact, atol=1e-5, rtol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x.bfloat16()).double(), exact, atol=0.05, rtol=0.02)


def test_neighbouring_pairs_turn_by_their_angle_and_are_written_as_halves():
    rope = RotaryEmbedding(rope_parameters(4, 100.0))
    cos, sin = rope(torch.tensor([[3]]))
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    a, b = 3.0, 3.0 / 10  # angle of a pair: position / theta ** (2 * pair / dim)
    expected = [math.cos(a), -2 * math.sin(b), math.sin(a), 2 * math.cos(b)]
    torch.testing.assert_close(rotate_interleaved(x, cos, sin).flatten(), torch.tensor(expected))


def test_pairs_of_the_halves_turn_as_neighbouring_pairs_do():
    cos, sin = RotaryEmbedding(rope_parameters(8, 100.0))(torch.tensor([[3, 5]]))
    x = torch.randn(1, 1, 2, 8)
    neighbours = torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)
    assert torch.equal(rotate_halves(x, cos, sin), rotate_interleaved(neighbours, cos, sin))


def test_scores_depend_on_the_distance_only():
    rope = RotaryEmbedding(rope_parameters(64, 10_000.0))
    q, k = torch.randn(2, 1, 1, 1, 64).double()

    def score(query_position: int, key_position: int) -> float:
        (cq, sq), (ck, sk) = (rope(torch.tensor([[p]])) for p in (query_position, key_position))
        return (rotate_interleaved(q, cq, sq) * rotate_interleaved(k, ck, sk)).sum().item()

    assert math.isclose(score(5, 2), score(105, 102), rel_tol=1e-4, abs_tol=1e-4)
    assert not math.isclose(score(5, 2), score(6, 2), rel_tol=1e-4)


def test_frequencies_are_there_when_modules_were_built_without_numbers():
    with torch.device("meta"):
        rope = RotaryEmbedding(rope_parameters(8, 100.0))
    assert rope.inv_freq.is_meta
    rope.to_empty(device="cpu").initialise(std=0.02)
    assert torch.equal(rope.inv_freq, rope_parameters(8, 100.0).inv_freq)


def test_position_interpolation_divides_positions():
    plain, scaled = rope_parameters(64, 1e6), rope_parameters(64, 1e6, position_scale=8.0)
    for ours, theirs in zip(
        RotaryEmbedding(scaled)(torch.tensor([[80]])), RotaryEmbedding(plain)(torch.tensor([[10]])), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_linear_scaling_replaces_position_interpolation():
    scaled = rope_parameters(64, 1e6, position_scale=8.0, scaling={"rope_type": "linear", "factor": 4.0})
    torch.testing.assert_close(scaled.inv_freq, rope_parameters(64, 1e6).inv_freq / 4)


def test_yarn_is_the_librarys():
    scaling = {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    }
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        max_position_embeddings=32_768,
        rope_parameters={"rope_theta": 1e6, **scaling},
    )
    inv_freq, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, device=None)
    ours = rope_parameters(64, 1e6, scaling=scaling)
    torch.testing.assert_close(ours.inv_freq, inv_freq)
    assert math.isclose(ours.magnitude, magnitude)
    assert math.isclose(ours.score_scale, (0.1 * 0.5 * math.log(8) + 1) ** 2)
