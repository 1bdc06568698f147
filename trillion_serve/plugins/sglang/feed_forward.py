"""Feed-forward layers on SGLang's parallel ones: dense, and routed experts with a shared one."""

import functools

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.linear import MergedColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from sglang.srt.layers.moe.ep_moe.layer import get_moe_impl_class
from sglang.srt.layers.moe.topk import TopK, TopKOutputFormat
from sglang.srt.runtime_context import get_parallel
from torch import nn

_LEAST_SUM = 1e-20


class SwiGLU(nn.Module):
    """SwiGLU feed-forward; without ``reduce_results`` each rank is left with its part of the sum."""

    def __init__(self, hidden_size: int, intermediate_size: int, prefix: str, reduce_results: bool = True) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size, [intermediate_size] * 2, bias=False, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(
            intermediate_size, hidden_size, bias=False, reduce_results=reduce_results, prefix=f"{prefix}.down_proj"
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        return self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]


class Router(ReplicatedLinear):
    """Scores experts in float32, with a bias on the choice where the family has one."""

    def __init__(self, hidden_size: int, num_experts: int, prefix: str, biased: bool = False) -> None:
        super().__init__(hidden_size, num_experts, bias=False, params_dtype=torch.float32, prefix=prefix)
        self.e_score_correction_bias = (
            nn.Parameter(torch.zeros(num_experts, dtype=torch.float32), requires_grad=False) if biased else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (tokens, experts) in float32 of (tokens, hidden)."""
        return super().forward(x.float())[0]


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared one.

    Args:
        config: a family's configuration with experts.
        layer_idx: the layer.
        biased: whether a bias decides with the scores which experts run.
    """

    def __init__(self, config, layer_idx: int, prefix: str, biased: bool = False) -> None:
        super().__init__()
        self.gate = Router(config.hidden_size, config.n_routed_experts, f"{prefix}.gate", biased)
        self.topk = TopK(
            config.num_experts_per_tok,
            layer_id=layer_idx,
            renormalize=config.norm_topk_prob,
            custom_routing_function=functools.partial(
                choose_experts,
                bias=self.gate.e_score_correction_bias,
                groups=getattr(config, "n_group", None) or 1,
                groups_used=getattr(config, "topk_group", None) or 1,
                scale=config.routed_scaling_factor,
            ),
            output_format=TopKOutputFormat.STANDARD,
        )
        self.experts = get_moe_impl_class(None)(
            num_experts=config.n_routed_experts,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            layer_id=layer_idx,
            top_k=config.num_experts_per_tok,
            prefix=f"{prefix}.experts",
        )
        self.shared_experts = SwiGLU(
            config.hidden_size,
            config.moe_intermediate_size * config.n_shared_experts,
            f"{prefix}.shared_experts",
            reduce_results=False,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        shared = self.shared_experts(x)
        out = self.experts(x, self.topk(x, self.gate(x))) + shared
        return out if get_parallel().tp_size == 1 else tensor_model_parallel_all_reduce(out)


def choose_experts(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    *,
    bias: torch.Tensor | None,
    groups: int,
    groups_used: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmoid routing: VAETKI's (report, section 2.1), and DeepSeek-V3's with a bias and groups.

    Args:
        hidden_states: not used; SGLang gives it.
        gating_output: logits (tokens, experts), float32.
        topk: experts a token.
        renormalize: whether weights are made to add up to 1 before scaling.
        bias: (experts,), added to scores for the choice only.
        groups, groups_used: a token uses the best few of equal groups, judged by their two best experts.
        scale: factor on weights.

    Returns:
        Weights, float32, and expert ids, int32, both (tokens, topk).
    """
    scores = gating_output.sigmoid()
    merits = scores if bias is None else scores + bias
    if groups > 1:
        grouped = merits.unflatten(-1, (groups, -1))  # (tokens, groups, experts of a group)
        used = grouped.topk(2, dim=-1).values.sum(-1).topk(groups_used, dim=-1).indices
        unused = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, used, False)
        merits = grouped.masked_fill(unused[..., None], -torch.inf).flatten(-2)
    ids = merits.topk(topk, dim=-1).indices
    weights = scores.gather(-1, ids)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + _LEAST_SUM)
    return weights * scale, ids.to(torch.int32)
