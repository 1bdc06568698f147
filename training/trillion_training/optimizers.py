"""Which optimiser trains which parameter."""

import torch
from torch import nn

from trillion_training.config import Optimizer
from trillion_training.muon import Muon

NOT_HIDDEN = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")
"""Matrices that are tables or classifiers rather than maps between hidden states: Muon does not suit them."""


def build_optimizers(model: nn.Module, config: Optimizer) -> dict[str, torch.optim.Optimizer]:
    """Make a run's optimisers, by name.

    With ``muon``, hidden matrices and the stacked experts go to Muon; embedding, head, router and norms to AdamW.
    Norm weights are never decayed.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = {
        name: p
        for name, p in trained.items()
        if config.name == "muon" and p.ndim >= 2 and not name.endswith(NOT_HIDDEN)
    }
    rest = {name: p for name, p in trained.items() if name not in hidden}
    groups = [
        {"params": [p for p in rest.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    }
    if hidden:
        optimizers["muon"] = Muon(hidden.values(), config.muon_lr, config.momentum, config.weight_decay)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rates(optimizers: dict[str, torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to its peak times ``factor``."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def optimizer_tensors(model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """All state of the optimisers as ``optimizer/parameter/field``; learning rates come from the recipe."""
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{kind}/{names[param]}/{field}": value
        for kind, optimizer in optimizers.items()
        for param, state in optimizer.state.items()
        for field, value in state.items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave.

    Raises:
        KeyError: a tensor belongs to no parameter of these optimisers.
    """
    params = dict(model.named_parameters())
    for name, value in tensors.items():
        kind, param, field = name.split("/")
        optimizers[kind].state[params[param]][field] = value
