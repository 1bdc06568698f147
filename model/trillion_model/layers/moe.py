"""Mixture of experts: a sigmoid router, routed experts in one grouped product, and load-balancing losses.

Source: VAETKI report, section 2.1 ("Feed-Forward Network and MoE Design").
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from trillion_model.layers.initial import OwnInitial


class SigmoidRouter(OwnInitial):
    """Scores experts by a sigmoid and keeps the best few, without groups and without a bias.

    Logits and scores are float32 whatever the model's dtype, because a rounding error here changes which experts
    run rather than how exactly they run.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        num_experts_per_tok: int,
        normalise: bool,
        scaling_factor: float,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.num_experts_per_tok = num_experts_per_tok
        self.normalise = normalise
        self.scaling_factor = scaling_factor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Route ``x`` (tokens, hidden).

        Returns:
            logits (tokens, experts), weights (tokens, k) and expert indices (tokens, k).
        """
        logits = F.linear(x.float(), self.weight.float())
        weights, indices = logits.sigmoid().topk(self.num_experts_per_tok, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights * self.scaling_factor, indices

    def initialise(self, std: float) -> None:
        init.normal_(self.weight, mean=0.0, std=std)


class Experts(OwnInitial):
    """SwiGLU experts, their weights stacked: ``gate_up_proj`` (experts, 2 x intermediate, hidden), gate rows first,
    and ``down_proj`` (experts, hidden, intermediate)."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    def forward(self, x: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Weighted sum of each token's experts.

        Tokens are sorted by expert, so that one grouped product serves all experts.

        Args:
            x: (tokens, hidden).
            weights, indices: (tokens, k), as the router gives them.
        """
        order = indices.flatten().argsort(stable=True)  # (tokens * k,)
        token = order // indices.shape[1]
        ends = indices.flatten().bincount(minlength=len(self.down_proj)).cumsum(0).to(torch.int32)
        gate, up = F.grouped_mm(x[token], self.gate_up_proj.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        out = F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends)  # (tokens * k, hidden)
        weighted = out.float() * weights.flatten()[order, None].float()
        return torch.zeros_like(x, dtype=torch.float32).index_add(0, token, weighted).to(x.dtype)

    def forward_loop(self, x: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The same sum, an expert at a time: the reference that :meth:`forward` is tested against."""
        total = torch.zeros_like(x, dtype=torch.float32)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            token, slot = (indices == expert).nonzero(as_tuple=True)
            gate, up = F.linear(x[token], gate_up).chunk(2, dim=-1)
            out = F.linear(F.silu(gate) * up, down).float() * weights[token, slot, None].float()
            total = total.index_add(0, token, out)
        return total.to(x.dtype)

    def initialise(self, std: float) -> None:
        init.normal_(self.gate_up_proj, mean=0.0, std=std)
        init.normal_(self.down_proj, mean=0.0, std=std)


def expert_load(
    router_logits: torch.Tensor, num_experts_per_tok: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """How many of the tokens' choices fell on each expert.

    Sum this over the micro-batches and ranks of a step to have the load of the global batch.

    Args:
        router_logits: (tokens, experts).
        mask: (tokens,), true where a token counts; all do when None.

    Returns:
        (experts,) in float32; its sum is tokens x num_experts_per_tok.
    """
    chosen = router_logits.topk(num_experts_per_tok, dim=-1).indices
    if mask is not None:
        chosen = chosen[mask]
    return chosen.flatten().bincount(minlength=router_logits.shape[-1]).float()


def load_balancing_loss(
    router_logits: torch.Tensor,
    num_experts_per_tok: int,
    *,
    load: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Auxiliary loss of one layer: experts x sum of load fraction times mean normalised sigmoid score.

    It is 1 at perfect balance. With ``load`` left out the fractions are the micro-batch's own, which is the
    conventional, local loss; with the load of the global batch it is the global auxiliary loss. VAETKI uses both,
    each with a coefficient of 1e-4 (VAETKI report, section 2.1).

    Args:
        router_logits: (tokens, experts).
        load: (experts,), counts of the global batch (:func:`expert_load`, summed); carries no gradient.
        mask: (tokens,), true where a token counts; all do when None.
    """
    if load is None:
        load = expert_load(router_logits, num_experts_per_tok, mask)
    scores = router_logits.float().sigmoid()
    scores = scores / scores.sum(dim=-1, keepdim=True)
    if mask is not None:
        scores = scores[mask]
    fraction = load / load.sum().clamp(min=1)
    return router_logits.shape[-1] * (fraction * scores.mean(dim=0)).sum()


def mean_load_balancing_loss(
    router_logits: Sequence[torch.Tensor],
    num_experts_per_tok: int,
    *,
    loads: Sequence[torch.Tensor] | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`load_balancing_loss`, averaged over layers.

    Args:
        router_logits: for each layer (tokens, experts).
        loads: for each layer the global batch's load, or None for the local loss.
        mask: (tokens,), true where a token counts.
    """
    return torch.stack(
        [
            load_balancing_loss(logits, num_experts_per_tok, load=None if loads is None else loads[i], mask=mask)
            for i, logits in enumerate(router_logits)
        ]
    ).mean()
