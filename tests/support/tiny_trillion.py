"""Small Trillion-7B models with random weights, for tests of everything that reads one."""

import torch

from support.random_weights import move_norms, published_weights
from trillion_model.trillion import Trillion7BConfig, Trillion7BForCausalLM

__all__ = ["published_weights", "tiny_config", "tiny_model"]


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
    move_norms(model, mean=1.0)
    return model
