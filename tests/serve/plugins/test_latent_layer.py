"""What the CPU's backend does with weights and cache, against plain products and copies."""

import pytest
import torch
from vllm import _custom_ops as ops

from trillion_serve.plugins.vllm.backend import LatentImpl

HEADS, RANK, ROPE = 3, 64, 32


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def impl(nope: int, value: int) -> LatentImpl:
    return LatentImpl(
        num_heads=HEADS,
        head_size=RANK + ROPE,
        scale=0.1,
        num_kv_heads=1,
        alibi_slopes=None,
        sliding_window=None,
        kv_cache_dtype="auto",
        logits_soft_cap=None,
        attn_type="decoder",
        kv_sharing_target_layer_name=None,
        kv_lora_rank=RANK,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=ROPE,
        qk_head_dim=nope + ROPE,
        v_head_dim=value,
        kv_b_proj=torch.nn.Identity(),
    )


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="needs AVX-512 with bfloat16")
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_packed_projections_are_the_plain_ones(tokens):
    layer = impl(nope=32, value=96)
    w_uk_t = torch.randn(HEADS, 32, RANK).bfloat16()
    w_uv = torch.randn(HEADS, RANK, 96).bfloat16()
    assert layer.pack(w_uk_t, w_uv)
    for weight, packed in ((w_uk_t, layer._w_uk_packed), (w_uv, layer._w_uv_packed)):
        x = torch.randn(tokens, HEADS, weight.shape[1] + 8).bfloat16()[..., :-8].transpose(0, 1)
        out = torch.empty(tokens, HEADS, weight.shape[2], dtype=torch.bfloat16)
        ops.bmm_cpu(out.transpose(0, 1), x, packed, True, layer._w_scale)
        expected = torch.bmm(x.double(), weight.double()).transpose(0, 1)
        torch.testing.assert_close(out.double(), expected, atol=0.1, rtol=0.01)


@pytest.mark.parametrize(("nope", "value", "dtype"), [(32, 96, torch.float32), (16, 32, torch.bfloat16)])
def test_what_the_packed_product_cannot_hold_stays_plain(nope, value, dtype):
    weights = torch.zeros(HEADS, nope, RANK, dtype=dtype), torch.zeros(HEADS, RANK, value, dtype=dtype)
    assert not impl(nope, value).pack(*weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_latents_go_to_their_slots_and_padding_nowhere(dtype):
    latents, k_rope = torch.randn(5, 2 * RANK).to(dtype)[:, :RANK], torch.randn(5, 1, 2 * ROPE).to(dtype)[..., :ROPE]
    cache = torch.zeros(4, 8, RANK + ROPE, dtype=dtype)
    slots = torch.tensor([9, -1, 31, 0])  # one token fewer than there are
    impl(32, 32).do_kv_cache_update(latents, k_rope, cache, slots, "auto", torch.ones(1))
    expected = torch.zeros(32, RANK + ROPE, dtype=dtype)
    for token, slot in ((0, 9), (2, 31), (3, 0)):
        expected[slot] = torch.cat((latents[token], k_rope[token, 0]))
    assert torch.equal(cache.view(32, -1), expected)
