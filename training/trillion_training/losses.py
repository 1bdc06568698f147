"""The training loss: next token, and the balance of experts over the micro-batch and over the whole step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from trillion_model.layers.moe import expert_load, mean_load_balancing_loss
from trillion_training.config import Losses
from trillion_training.data.packing import IGNORED, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StepLosses:
    """Means over a step, each a plain number; the balance losses are 1 at perfect balance."""

    next_token: float
    local_balance: float
    global_balance: float


def backward(model: "PreTrainedModel", batches: list[Batch], config: Losses) -> StepLosses:
    """Add a step's gradients to the parameters.

    The next-token loss is the mean over all learned tokens of the step, however they fall on micro-batches. The
    global balance loss takes the load of the micro-batches of the step so far, the last one's that of all.

    Args:
        model: a causal language model that returns logits, router logits and the local balance loss.
        batches: the step's micro-batches.
        config: coefficients of the balance losses.
    """
    learned = max(sum(int((batch.targets != IGNORED).sum()) for batch in batches), 1)
    experts_per_token = model.config.num_experts_per_tok
    loads: list[torch.Tensor] = []
    next_token = local = wide = torch.zeros(())
    for batch in batches:
        out = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            output_router_logits=True,
            use_cache=False,
        )
        token_loss = (
            F.cross_entropy(out.logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
            / learned
        )
        total = token_loss
        if out.router_logits:
            fresh = [expert_load(logits.detach(), experts_per_token) for logits in out.router_logits]
            loads = [a + b for a, b in zip(loads, fresh, strict=True)] if loads else fresh
            global_loss = mean_load_balancing_loss(out.router_logits, experts_per_token, loads=loads)
            total = total + (config.local_balance * out.aux_loss + config.global_balance * global_loss) / len(batches)
            local = local + out.aux_loss.detach() / len(batches)
            wide = wide + global_loss.detach() / len(batches)
        total.backward()
        next_token = next_token + token_loss.detach()
    return StepLosses(float(next_token), float(local), float(wide))
