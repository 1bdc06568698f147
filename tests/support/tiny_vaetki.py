"""Small VAETKI models with random weights, for tests of everything that reads one."""

import torch

from support.random_weights import move_norms, published_weights
from trillion_model.vaetki import VaetkiConfig, VaetkiForCausalLM

__all__ = ["WINDOW", "YARN", "published_weights", "tiny_config", "tiny_model"]

WINDOW = 16
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 0.8,
    "mscale_all_dim": 0.5,
}
"""A ``rope_scaling`` whose every part counts at tiny lengths."""


def tiny_config(**changes) -> VaetkiConfig:
    """Seven layers, one of them global and one dense, with a window of 16."""
    shape = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 7,
        "num_attention_heads": 2,
        "q_lora_rank": 32,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 64,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        "sliding_window": WINDOW,
        "global_position_scale": 8.0,
        "max_position_embeddings": 1024,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return VaetkiConfig(**(shape | changes))


def tiny_model(seed: int = 0, **changes) -> VaetkiForCausalLM:
    """A tiny model in evaluation mode, its norms moved away from 0 so that they count."""
    torch.manual_seed(seed)
    model = VaetkiForCausalLM(tiny_config(**changes)).eval()
    move_norms(model, mean=0.0)
    return model
