"""Small Tri-70B models with random weights, for tests of everything that reads one."""

import torch

from trillion_model.tri70b import TrillionConfig, TrillionForCausalLM
from trillion_model.tri70b.layout import LAYOUT

WINDOW = 16


def tiny_config(**changes) -> TrillionConfig:
    """Eight layers, two of them global, with a window of 16 and queries that sharpen every 8 tokens."""
    shape = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "sliding_window": WINDOW,
        "attn_scale": 0.5,
        "floor_scale": 8.0,
        "max_position_embeddings": 1024,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return TrillionConfig(**(shape | changes))


def tiny_model(seed: int = 0, **changes) -> TrillionForCausalLM:
    """A tiny model in evaluation mode, its norms moved away from 1 so that they count."""
    torch.manual_seed(seed)
    model = TrillionForCausalLM(tiny_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(mean=1.0, std=0.2)
    return model


def published_weights(model: TrillionForCausalLM, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The model's tensors under their published names, in ``dtype``."""
    return {
        name: part.detach().to(dtype)
        for module_name, tensor in model.state_dict().items()
        for name, part in LAYOUT.to_published(module_name, tensor).items()
    }
