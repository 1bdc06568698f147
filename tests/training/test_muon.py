"""Muon: orthogonal steps for matrices and for stacks of them."""

import pytest
import torch

from trillion_training.config import Optimizer
from trillion_training.muon import Muon, orthogonalise
from trillion_training.optimizers import build_optimizers, set_learning_rates


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 40), (2, 40, 8)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    core = u.mT @ orthogonalise(matrices) @ v.mT  # diagonal when the singular vectors are kept
    values = core.diagonal(dim1=-2, dim2=-1)
    assert ((values > 0.3) & (values < 1.4)).all()
    torch.testing.assert_close(core, torch.diag_embed(values), atol=1e-4, rtol=0)


def test_each_matrix_of_a_stack_is_stepped_as_if_alone() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(4, 6, 10), torch.randn(4, 6, 10)
    stack = torch.nn.Parameter(start.clone())
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    optimizers = [Muon([stack], lr=0.1, weight_decay=0.1), Muon(alone, lr=0.1, weight_decay=0.1)]
    for _ in range(3):
        stack.grad = gradient.clone()
        for matrix, g in zip(alone, gradient, strict=True):
            matrix.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stack.data, torch.stack([m.data for m in alone]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_a_step_s_size_is_about_adamw_s_whatever_the_shape(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.zeros(shape))
    param.grad = torch.randn(shape)
    Muon([param], lr=1.0).step()
    assert 0.12 < float(param.data.square().mean().sqrt()) < 0.28


def test_experts_and_hidden_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    from support.tiny_vaetki import tiny_model

    model = tiny_model()
    optimizers = build_optimizers(model, Optimizer(lr=0.5, muon_lr=0.25, weight_decay=0.1))
    names = {param: name for name, param in model.named_parameters()}
    trained = {kind: {names[p] for g in o.param_groups for p in g["params"]} for kind, o in optimizers.items()}
    assert trained["muon"] | trained["adamw"] == set(names.values())
    assert not trained["muon"] & trained["adamw"]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight"} <= trained["adamw"]
    assert {
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.0.self_attn.kv_b_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
    } <= trained["muon"]
    assert all(name.endswith("norm.weight") for name in trained["adamw"] if names_are_vectors(model, name))
    decay = {names[p]: g["weight_decay"] for g in optimizers["adamw"].param_groups for p in g["params"]}
    assert decay["model.norm.weight"] == 0 and decay["lm_head.weight"] == 0.1
    set_learning_rates(optimizers, 0.5)
    assert {g["lr"] for g in optimizers["adamw"].param_groups} == {0.25}
    assert {g["lr"] for g in optimizers["muon"].param_groups} == {0.125}


def names_are_vectors(model: torch.nn.Module, name: str) -> bool:
    return model.get_parameter(name).ndim == 1
