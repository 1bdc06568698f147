"""Bytes of a cache, on one device and on several."""

import pytest
from transformers import LlamaConfig

from trillion_model import presets
from trillion_model.sizes import KvCache, expanded_kv_cache, has_latents, kv_cache, part_of


@pytest.mark.parametrize("name", presets.names())
def test_a_cache_holds_the_numbers_that_its_configuration_states(name):
    config = presets.get(name)
    cache = kv_cache(config)
    assert cache.numbers == config.cached_numbers
    assert cache.local_layers + cache.global_layers == config.num_hidden_layers
    assert (cache.window is None) == (cache.local_layers == 0)
    assert (expanded_kv_cache(config) != cache) == has_latents(config)


def test_latents_are_repeated_and_heads_are_spread_over_devices():
    latents, dense = presets.get("vaetki-7b-a1b"), presets.get("tri-70b")
    assert kv_cache(latents, 4) == kv_cache(latents) == KvCache(576, 20, 4, 512)
    assert expanded_kv_cache(latents, 4).numbers == 2 * 192 * 12 // 4
    assert kv_cache(dense, 4) == expanded_kv_cache(dense, 4) == KvCache(2 * 2 * 128, 60, 20, 4096)
    assert kv_cache(dense, 16).numbers == kv_cache(dense, 8).numbers == 2 * 128


def test_plain_llama_has_no_windows():
    config = LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    assert kv_cache(config) == expanded_kv_cache(config) == KvCache(2 * 2 * 16, 0, 2, None)


def test_a_request_keeps_its_windows_and_all_of_its_tokens_elsewhere():
    cache = KvCache(576, 5, 1, 64)
    assert cache.bytes_per_request("bfloat16", 100) == (5 * 64 + 100) * 1152
    assert cache.bytes_per_request("fp8", 10) == 6 * 10 * 576
    assert cache.without_windows() == KvCache(576, 0, 6, None)
    assert cache.without_windows().bytes_per_request("bfloat16", 100) == 6 * 100 * 1152


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.3.mlp.experts.5.gate_proj.weight", "routed experts"),
        ("model.layers.3.mlp.experts.5.gate_proj.weight_scale", "routed experts"),
        ("model.layers.3.mlp.experts.gate_up_proj", "routed experts"),
        ("model.layers.3.mlp.gate.weight", "router"),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", "shared experts"),
        ("model.layers.0.mlp.up_proj.weight", "dense feed-forward"),
        ("model.layers.3.self_attn.kv_a_layernorm.weight", "norms"),
        ("model.layers.3.self_attn.kv_b_proj.weight", "attention"),
        ("lm_head.weight", "head"),
        ("something.else", "other"),
    ],
)
def test_every_tensor_has_a_part(name, part):
    assert part_of(name) == part
