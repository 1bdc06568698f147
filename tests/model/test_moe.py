"""Experts in one grouped product against a loop; the router and its balance losses against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trillion_model.layers.moe import (
    Experts,
    SigmoidRouter,
    expert_load,
    load_balancing_loss,
    mean_load_balancing_loss,
)


def experts(num_experts: int = 4, hidden: int = 32, intermediate: int = 16, dtype=torch.float32) -> Experts:
    torch.manual_seed(0)
    module = Experts(num_experts, hidden, intermediate).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module


@settings(max_examples=25, deadline=None)
@given(assignment=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2, unique=True), min_size=1, max_size=20))
def test_grouped_experts_equal_the_loop_whatever_the_assignment(assignment):
    module = experts()
    indices = torch.tensor(assignment)
    x = torch.randn(len(assignment), 32)
    weights = torch.rand(indices.shape)
    torch.testing.assert_close(module(x, weights, indices), module.forward_loop(x, weights, indices))


def test_gradients_equal_the_loops_with_an_expert_that_nobody_chose():
    x, indices, weights = torch.randn(9, 32), torch.tensor([[0, 2]] * 9), torch.rand(9, 2)
    gradients = []
    for name in ("forward", "forward_loop"):
        module = experts()
        inputs = x.clone().requires_grad_()
        getattr(module, name)(inputs, weights, indices).square().sum().backward()
        gradients.append([inputs.grad, *(p.grad for p in module.parameters())])
    for grouped, loop in zip(*gradients, strict=True):
        torch.testing.assert_close(grouped, loop, atol=1e-5, rtol=1e-4)
    assert gradients[0][1][1].abs().sum() == 0


def test_bfloat16_experts_stay_near_the_loop_in_float64():
    module = experts(dtype=torch.bfloat16)
    x, indices, weights = torch.randn(50, 32).bfloat16(), torch.randint(0, 4, (50, 2)), torch.rand(50, 2)
    exact = experts(dtype=torch.float64)
    with torch.no_grad():
        for fine, coarse in zip(exact.parameters(), module.parameters(), strict=True):
            fine.copy_(coarse)
    out = module(x, weights, indices)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact.forward_loop(x.double(), weights, indices), atol=0.02, rtol=0.05)


def test_the_router_keeps_the_best_sigmoid_scores_normalised_and_scaled():
    router = SigmoidRouter(3, 4, num_experts_per_tok=2, normalise=True, scaling_factor=2.5)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]))
    logits, weights, indices = router(torch.tensor([[3.0, -1.0, 2.0]]))
    assert logits.tolist() == [[3.0, -1.0, 2.0, -4.0]]
    assert indices.tolist() == [[0, 2]]
    a, b = (1 / (1 + 2.718281828459045**-v) for v in (3.0, 2.0))
    torch.testing.assert_close(weights, torch.tensor([[2.5 * a / (a + b), 2.5 * b / (a + b)]]))


def test_router_arithmetic_is_float32_in_a_bfloat16_model():
    router = SigmoidRouter(8, 4, 2, True, 1.0).bfloat16()
    torch.nn.init.normal_(router.weight)
    logits, weights, _ = router(torch.randn(5, 8).bfloat16())
    assert logits.dtype == weights.dtype == torch.float32


def test_perfect_balance_has_a_loss_of_one_and_collapse_has_more():
    even = torch.eye(4).repeat(3, 1) * 1e-3
    assert load_balancing_loss(even, 1).item() == pytest.approx(1.0, abs=1e-3)
    collapsed = torch.tensor([[9.0, -9.0, -9.0, -9.0]]).repeat(8, 1)
    assert load_balancing_loss(collapsed, 1).item() == pytest.approx(4.0, abs=1e-2)


def test_the_global_loss_uses_the_load_of_all_micro_batches():
    first, second = torch.tensor([[9.0, -9.0]] * 4), torch.tensor([[-9.0, 9.0]] * 4)
    load = expert_load(first, 1) + expert_load(second, 1)
    assert load.tolist() == [4.0, 4.0]
    assert load_balancing_loss(first, 1).item() == pytest.approx(2.0, abs=1e-3)
    assert load_balancing_loss(first, 1, load=load).item() == pytest.approx(1.0, abs=1e-3)


def test_masked_tokens_count_neither_in_load_nor_in_scores():
    logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    mask = torch.tensor([True, False])
    assert expert_load(logits, 1, mask).tolist() == [1.0, 0.0]
    assert load_balancing_loss(logits, 1, mask=mask) == load_balancing_loss(logits[:1], 1)


def test_layers_are_averaged_and_only_scores_carry_gradients():
    logits = [torch.randn(6, 4, requires_grad=True) for _ in range(3)]
    loss = mean_load_balancing_loss(logits, 2)
    torch.testing.assert_close(loss, torch.stack([load_balancing_loss(layer, 2) for layer in logits]).mean())
    loss.backward()
    assert all(layer.grad.abs().sum() > 0 for layer in logits)
