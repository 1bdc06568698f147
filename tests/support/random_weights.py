"""What small models of every family share: weights under published names, norms that count, tokens to read."""

import torch
from transformers import PreTrainedModel

from trillion_model.architecture import family


def move_norms(model: PreTrainedModel, mean: float) -> None:
    """Move the weights of norms away from ``mean``, at which they do nothing, so that each counts."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(mean=mean, std=0.2)


def published_weights(model: PreTrainedModel, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The model's tensors under their published names, in ``dtype``."""
    layout = family(model.config, "layout").LAYOUT
    return {
        name: part.detach().to(dtype)
        for module_name, tensor in model.state_dict().items()
        for name, part in layout.to_published(module_name, tensor).items()
    }


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Tokens of a vocabulary of 320, none of which is special."""
    return torch.randint(3, 320, shape, generator=torch.Generator().manual_seed(seed))


def logprob_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two models' log-probabilities, from their logits (..., vocab)."""
    return (logits.double().log_softmax(-1) - expected.log_softmax(-1)).abs().max().item()
