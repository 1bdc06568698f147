"""Muon for matrices and for stacks of matrices.

``torch.optim.Muon`` takes matrices only and orthogonalises them one at a time in bfloat16. Experts are stacked in
tensors of three dimensions, and a model has many matrices of the same shape, so here every stack is orthogonalised
matrix by matrix in one batched product, in float32 off the GPU, where bfloat16 is slow.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (K. Jordan, "Muon", 2024)."""

STEPS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Bring the singular values of every matrix near 1, keeping its singular vectors.

    Args:
        matrices: (n, rows, columns).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised.

    A step's root mean square is 0.2 times the learning rate whatever the shape, which is about AdamW's, so that one
    scale of learning rate and weight decay serves both (Moonshot AI, "Muon is Scalable for LLM Training", 2025).

    Args:
        params: tensors of two dimensions, or of three: stacks of matrices.
        lr: learning rate.
        momentum: share of the old momentum that is kept; the step looks ahead by it (Nesterov).
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what ``closure`` returns, when given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for params in by_shape.values():
                self._step_shape(params, **{k: group[k] for k in ("lr", "momentum", "weight_decay")})
        return loss

    def _step_shape(self, params: list[torch.nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        updates = []
        for param in params:
            assert param.grad is not None
            state = self.state[param]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(param)
            state["momentum_buffer"].lerp_(param.grad, 1 - momentum)
            updates.append(param.grad.lerp(state["momentum_buffer"], momentum))
        rows, columns = params[0].shape[-2:]
        steps = orthogonalise(torch.stack(updates).view(-1, rows, columns)).view(-1, *params[0].shape)
        scale = 0.2 * math.sqrt(max(rows, columns))
        for param, step in zip(params, steps, strict=True):
            param.mul_(1 - lr * weight_decay).add_(step.to(param.dtype), alpha=-lr * scale)
