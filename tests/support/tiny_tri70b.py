"""Small Tri-70B models with random weights, for tests of everything that reads one."""

import torch

from support.random_weights import move_norms, published_weights
from trillion_model.tri70b import TrillionConfig, TrillionForCausalLM

__all__ = ["WINDOW", "published_weights", "tiny_config", "tiny_model"]

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
    move_norms(model, mean=1.0)
    return model
