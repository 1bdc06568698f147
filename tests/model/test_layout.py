"""The published layout as a table: names, shapes, and every operation undone exactly."""

import pytest
import torch

from support.tiny_vaetki import tiny_model
from trillion_model.errors import CheckpointError
from trillion_model.vaetki.layout import LAYOUT


def test_names_and_shapes_are_the_published_ones():
    shapes = LAYOUT.published_shapes({name: tuple(t.shape) for name, t in tiny_model().state_dict().items()})
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == (96, 64)
    assert shapes["model.layers.6.mlp.experts.3.up_proj.weight"] == (32, 64)
    assert shapes["model.layers.6.mlp.experts.3.down_proj.weight"] == (64, 32)
    assert shapes["model.layers.5.self_attn.kv_a_proj_with_mqa.weight"] == (576, 64)
    assert len(shapes) == 3 + 7 * 11 + 3 + 6 * (1 + 3 + 3 * 4)


def test_joining_undoes_splitting():
    for name, tensor in tiny_model().state_dict().items():
        parts = LAYOUT.to_published(name, tensor)
        assert {n: tuple(p.shape) for n, p in parts.items()} == LAYOUT.published_names(name, tuple(tensor.shape))
        assert torch.equal(LAYOUT.to_module(name, tuple(tensor.shape), parts.__getitem__), tensor)


def test_gate_rows_come_before_up_rows():
    stacked = torch.arange(2 * 4 * 3).view(2, 4, 3)
    parts = LAYOUT.to_published("model.layers.1.mlp.experts.gate_up_proj", stacked)
    assert torch.equal(parts["model.layers.1.mlp.experts.1.gate_proj.weight"], stacked[1, :2])
    assert torch.equal(parts["model.layers.1.mlp.experts.1.up_proj.weight"], stacked[1, 2:])


def test_an_unknown_tensor_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight"):
        LAYOUT.row("model.layers.0.self_attn.q_proj.weight")


def test_a_misshapen_tensor_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: shape is \(3, 4\).*\(5, 4\)"):
        LAYOUT.to_module("lm_head.weight", (5, 4), lambda name: torch.zeros(3, 4))
