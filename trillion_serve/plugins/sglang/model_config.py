"""What SGLang needs to know of our configurations before there is a model.

SGLang goes by lists of architecture names that it knows. A hook fills in what follows from being on one: that a
family caches latents, and which layers attend within a window and so draw from the smaller of two pools. It also keeps
from SGLang that a checkpoint is quantised, since our layers are given plain weights, see ``quantized.py``.
"""

from typing import Any

from trillion_model.configuration import FamilyConfig

HOOKED = "sglang.srt.configs.model_config.ModelConfig._derive_model_shapes"


def caches_latents(config: FamilyConfig) -> bool:
    """Whether a layer caches one latent a token, shared by all heads, rather than keys and values."""
    return hasattr(config, "kv_lora_rank")


def stored_quantization(config: FamilyConfig) -> dict[str, Any] | None:
    """How the checkpoint's weights are quantised, as ``config.json`` states it; None where they are not."""
    return getattr(config, "stored_quantization", None)


def has_windows(config: FamilyConfig) -> bool:
    """Whether some layers attend within a window only."""
    return any(config.is_local(layer) for layer in range(config.num_hidden_layers))


def describe(result: None, model_config: Any, *args: Any, **kwargs: Any) -> None:
    """Complete SGLang's ``ModelConfig`` of one of our families; runs after its own derivation."""
    config = model_config.hf_text_config
    if not isinstance(config, FamilyConfig):
        return
    if getattr(config, "quantization_config", None) is not None:
        config.stored_quantization = config.quantization_config
        del config.quantization_config
    if caches_latents(config):
        _describe_latents(model_config, config)
    if has_windows(config):
        config.is_hybrid_swa = True
        config.hybrid_layer_pattern = [int(config.is_local(layer)) for layer in range(config.num_hidden_layers)]


def _describe_latents(model_config: Any, config: Any) -> None:
    from sglang.srt.configs.model_config import AttentionArch

    model_config.attention_arch = AttentionArch.MLA
    model_config.kv_lora_rank = model_config.swa_kv_lora_rank = config.kv_lora_rank
    model_config.qk_rope_head_dim = model_config.swa_qk_rope_head_dim = config.qk_rope_head_dim
    model_config.qk_nope_head_dim = config.qk_nope_head_dim
    model_config.v_head_dim = config.v_head_dim
    model_config.index_head_dim = None
    # Backends that prepare for a batch ask for it; each layer states its own.
    model_config.scaling = config.qk_head_dim**-0.5
