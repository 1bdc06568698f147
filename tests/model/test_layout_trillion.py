"""Trillion-7B's published layout: Llama's names but for the norms, and nothing of what only training has."""

import pytest
import torch
from transformers import LlamaConfig

from support.tiny_trillion import published_weights, tiny_config, tiny_model
from trillion_model.architecture import Architecture
from trillion_model.errors import CheckpointError
from trillion_model.layout import Dropped, Layout, Same
from trillion_model.trillion.layout import LAYOUT


def test_names_and_shapes_are_the_published_ones():
    shapes = LAYOUT.published_shapes({name: tuple(t.shape) for name, t in tiny_model().state_dict().items()})
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (64, 64)
    assert shapes["model.layers.3.mlp.down_proj.weight"] == (64, 96)
    assert shapes["model.layers.3.post_mlp_layernorm.weight"] == (64,)
    assert len(shapes) == 3 + 4 * 11
    assert not [name for name in shapes if "mtp" in name]


def test_names_are_llama_s_but_for_the_norms_of_a_layer():
    config = tiny_config()
    llama = Architecture.of(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
        )
    ).published_shapes()
    ours = Architecture.of(config).published_shapes()
    norms = {f"model.layers.{i}.{name}_mlp_layernorm.weight" for i in range(4) for name in ("pre", "post")}
    assert ours.keys() - llama.keys() == norms
    assert llama.keys() - ours.keys() == set()


def test_joining_undoes_splitting_for_all_that_is_published():
    for name, tensor in tiny_model().state_dict().items():
        parts = LAYOUT.to_published(name, tensor)
        assert {n: tuple(p.shape) for n, p in parts.items()} == LAYOUT.published_names(name, tuple(tensor.shape))
        if parts:
            assert torch.equal(LAYOUT.to_module(name, tuple(tensor.shape), parts.__getitem__), tensor)


def test_the_published_architecture_is_built_without_what_is_dropped():
    trained = Architecture.of(tiny_config())
    published = trained.published_form()
    assert {name for name in trained.module_shapes if name.startswith("mtp.")}
    assert published.module_shapes == published.published_shapes() == trained.published_shapes()
    assert published_weights(tiny_model()).keys() == published.module_shapes.keys()


def test_a_dropped_tensor_is_never_put_together():
    layout = Layout([Same("head.weight"), Dropped("extra.weight")])
    assert layout.published_shapes({"head.weight": (2, 3), "extra.weight": (4,)}) == {"head.weight": (2, 3)}
    assert layout.to_published("extra.weight", torch.zeros(4)) == {}
    with pytest.raises(CheckpointError, match=r"extra\.weight: is trained and not published"):
        layout.to_module("extra.weight", (4,), {}.__getitem__)
