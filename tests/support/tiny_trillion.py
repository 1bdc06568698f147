"""Small Trillion-7B models with random weights, for tests of everything that reads one."""

import torch

from trillion_model.trillion import Trillion7BConfig, Trillion7BForCausalLM
from trillion_model.trillion.layout import LAYOUT


def tiny_config(**changes) -> Trillion7BConfig:
    """Four layers, heads of 32 (the least that vLLM's CPU attention has), and the module for the second next token."""
    shape = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.1,
        "num_nextn_predict_layers": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return Trillion7BConfig(**(shape | changes))


def tiny_model(seed: int = 0, **changes) -> Trillion7BForCausalLM:
    """A tiny model in evaluation mode, its norms moved away from 1 so that they count."""
    torch.manual_seed(seed)
    model = Trillion7BForCausalLM(tiny_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(mean=1.0, std=0.2)
    return model


def published_weights(model: Trillion7BForCausalLM, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The model's tensors under their published names, in ``dtype``."""
    return {
        name: part.detach().to(dtype)
        for module_name, tensor in model.state_dict().items()
        for name, part in LAYOUT.to_published(module_name, tensor).items()
    }
