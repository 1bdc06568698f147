"""Megatron-Core's names as a table: exactly the published tensors, and every operation undone bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.tiny_vaetki import published_weights, tiny_config, tiny_model
from trillion_model.architecture import Architecture
from trillion_model.errors import CheckpointError
from trillion_model.layout import Layout, Shape
from trillion_model.vaetki.megatron import LAYOUT, STACKED, tensor_names


def shapes_of(layout: Layout, names: list[str], published: dict[str, Shape]) -> dict[str, Shape]:
    return {name: layout.module_shape(name, published) for name in names}


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return published_weights(tiny_model(), torch.float32)


def test_names_and_shapes_of_both_kinds_of_layer(published):
    shapes = shapes_of(LAYOUT, tensor_names(tiny_config()), {name: tuple(t.shape) for name, t in published.items()})
    attention = {
        "input_layernorm.weight": (64,),
        "self_attention.linear_q_down_proj.weight": (32, 64),
        "self_attention.linear_q_up_proj.layer_norm_weight": (32,),
        "self_attention.linear_q_up_proj.weight": (2 * (16 + 64), 32),
        "self_attention.linear_kv_down_proj.weight": (512 + 64, 64),
        "self_attention.linear_kv_up_proj.layer_norm_weight": (512,),
        "self_attention.linear_kv_up_proj.weight": (2 * (16 + 16), 512),
        "self_attention.linear_proj.weight": (64, 32),
        "self_attention.post_attn_layernorm.weight": (64,),
        "post_mlp_layernorm.weight": (64,),
    }
    dense = {
        "mlp.linear_fc1.layer_norm_weight": (64,),
        "mlp.linear_fc1.weight": (2 * 96, 64),
        "mlp.linear_fc2.weight": (64, 96),
    }
    experts = {
        "pre_mlp_layernorm.weight": (64,),
        "mlp.router.weight": (4, 64),
        "mlp.experts.experts.linear_fc1.weight": (4, 2 * 32, 64),
        "mlp.experts.experts.linear_fc2.weight": (4, 64, 32),
        "mlp.shared_experts.linear_fc1.weight": (2 * 32, 64),
        "mlp.shared_experts.linear_fc2.weight": (64, 32),
    }
    layers = [attention | dense] + [attention | experts] * 6
    assert shapes == {
        "embedding.word_embeddings.weight": (320, 64),
        **{f"decoder.layers.{i}.{name}": shape for i, rows in enumerate(layers) for name, shape in rows.items()},
        "decoder.final_layernorm.weight": (64,),
        "output_layer.weight": (320, 64),
    }


def assert_exact_round_trip(layout: Layout, names: list[str], published: dict[str, torch.Tensor]) -> None:
    """Published to Megatron-Core and back: every published tensor once, every bit as it was."""
    shapes = shapes_of(layout, names, {name: tuple(tensor.shape) for name, tensor in published.items()})
    megatron = {name: layout.to_module(name, shape, published.__getitem__) for name, shape in shapes.items()}
    assert {name: tuple(tensor.shape) for name, tensor in megatron.items()} == shapes
    back = [part for name, tensor in megatron.items() for part in layout.to_published(name, tensor).items()]
    assert sorted(name for name, _ in back) == sorted(published)
    for name, tensor in back:
        assert torch.equal(tensor, published[name]), name


def test_every_published_tensor_comes_back_once_and_exact(published):
    assert_exact_round_trip(LAYOUT, tensor_names(tiny_config()), published)


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 4),
    experts=st.integers(2, 5),
    shared=st.integers(1, 2),
    data=st.data(),
)
def test_any_shape_comes_back_exact(layers, experts, shared, data):
    config = tiny_config(
        num_hidden_layers=layers,
        first_k_dense_replace=data.draw(st.integers(0, layers)),
        n_routed_experts=experts,
        n_shared_experts=shared,
        vocab_size=8,
    )
    shapes = Architecture.of(config).published_shapes()
    published = {name: torch.rand(shape) for name, shape in shapes.items()}
    assert_exact_round_trip(LAYOUT, tensor_names(config), published)
    if config.first_k_dense_replace in (0, layers):
        assert_exact_round_trip(STACKED, tensor_names(config, stacked=True), published)


def test_the_gate_comes_before_the_up_projection(published):
    gate, up = (published[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    fused = LAYOUT.to_module("decoder.layers.0.mlp.linear_fc1.weight", (192, 64), published.__getitem__)
    assert torch.equal(fused[:96], gate) and torch.equal(fused[96:], up)
    assert not torch.equal(fused[:96], up)


def test_a_stack_over_layers_has_the_layer_first():
    config = tiny_config(num_hidden_layers=3, first_k_dense_replace=0)
    shapes = shapes_of(STACKED, tensor_names(config, stacked=True), Architecture.of(config).published_shapes())
    assert shapes["decoder.layers.mlp.experts.experts.linear_fc1.weight"] == (3, 4, 64, 64)
    assert shapes["decoder.layers.self_attention.linear_q_up_proj.layer_norm_weight"] == (3, 32)
    assert not any("layers.0" in name for name in shapes)
    stack = torch.arange(3.0)[:, None, None].expand(3, 4, 64)
    parts = STACKED.to_published("decoder.layers.mlp.router.weight", stack)
    assert {name: part.unique().tolist() for name, part in parts.items()} == {
        f"model.layers.{layer}.mlp.gate.weight": [layer] for layer in range(3)
    }


def test_a_name_of_the_published_layout_is_none_of_megatrons():
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: the architecture has no such tensor"):
        LAYOUT.row("model.norm.weight")
