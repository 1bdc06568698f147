"""The latent cache holds 576 numbers a token a layer, and no more tokens than a layer can see."""

import pytest
import torch

from support.tiny_vaetki import WINDOW, tiny_model
from trillion_model.cache import LatentCache


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, WINDOW - 1, WINDOW, WINDOW + 1, 5 * WINDOW])
def test_local_layers_are_bounded_by_the_window(model, tokens):
    cache = LatentCache(model.config)
    model(torch.randint(3, 320, (2, tokens)), past_key_values=cache, use_cache=True)
    for kind, layer in zip(model.config.layer_types, cache.layers, strict=True):
        kept = min(tokens, WINDOW - 1) if kind == "sliding_attention" else tokens
        assert layer.keys.shape == (2, 1, kept, 512)
        assert layer.values.shape == (2, 1, kept, 64)
    local, all_tokens = 6 * min(tokens, WINDOW - 1), tokens
    assert cache.nbytes == 2 * (local + all_tokens) * 576 * 4
    assert cache.get_seq_length() == tokens


@torch.no_grad()
def test_generate_uses_it(model):
    out = model.generate(
        torch.randint(3, 320, (1, 40)), max_new_tokens=2, do_sample=False, return_dict_in_generate=True
    )
    assert isinstance(out.past_key_values, LatentCache)
