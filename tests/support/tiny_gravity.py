"""Small Gravity models with random weights, for tests of everything that reads one."""

import json

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from support.engine_parity import Reference
from trillion_model.gravity import GravityMoEConfig, GravityMoEForCausalLM

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def tiny_config(**changes) -> GravityMoEConfig:
    """Three layers, one of them dense; a latent of the size that vLLM's kernels know."""
    shape = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 64,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "max_position_embeddings": 1024,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return GravityMoEConfig(**(shape | changes))


def tiny_model(seed: int = 0, **changes) -> GravityMoEForCausalLM:
    """A tiny model in evaluation mode, its norms and its experts' biases moved so that they count."""
    torch.manual_seed(seed)
    model = GravityMoEForCausalLM(tiny_config(**changes)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name:
                tensor.normal_(mean=1.0, std=0.2)
            if name.endswith("e_score_correction_bias"):
                tensor.normal_(std=0.2)
    return model


def deepseek_logits(model: GravityMoEForCausalLM, **changes) -> Reference:
    """Transformers' own model with the same weights, and with fields of the configuration changed."""
    deepseek = as_deepseek(model, **changes)
    return torch.no_grad()(lambda ids: deepseek(ids[None]).logits[0].double())


def as_deepseek(model: GravityMoEForCausalLM, **changes) -> DeepseekV3ForCausalLM:
    """Transformers' own model with the same weights, built from what a config.json would say."""
    fields = json.loads(model.config.to_json_string(use_diff=False)) | changes
    fields.pop("model_type")
    other = DeepseekV3ForCausalLM(DeepseekV3Config(**fields)).eval()
    other.load_state_dict(model.state_dict())
    return other
