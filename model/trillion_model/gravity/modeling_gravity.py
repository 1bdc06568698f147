"""Gravity in plain PyTorch: Transformers' DeepSeek-V3 with another configuration class.

Transformers normalises latents with an epsilon of 1e-6 whatever ``rms_norm_eps`` says, vLLM with ``rms_norm_eps``. The
two differ by that much where a checkpoint says otherwise than 1e-6.
"""

from transformers import DeepseekV3ForCausalLM, DeepseekV3Model

from trillion_model.gravity.configuration_gravity import GravityMoEConfig


class GravityMoEModel(DeepseekV3Model):
    """Token ids to final hidden states."""

    config: GravityMoEConfig


class GravityMoEForCausalLM(DeepseekV3ForCausalLM):
    """Gravity with its language-model head."""

    config: GravityMoEConfig
