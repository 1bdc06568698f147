"""Refuses, before weights are read, to start SGLang in a way in which our models would fail or answer wrongly.

Most of all an attention backend that would let local layers see more than their window, or read the wrong pool.
"""

from typing import Any

from trillion_model.configuration import FamilyConfig
from trillion_serve.plugins.sglang import SglangStartError
from trillion_serve.plugins.sglang.model_config import caches_latents, has_windows, stored_quantization

HOOKED = "sglang.srt.server_args.ServerArgs.check_server_args"

LATENT_BACKENDS = {"triton"}
"""Backends that honour a window over latents. Others take the layer's window and ignore it."""

GROUPED_BACKENDS = {"triton", "fa3", "flashinfer", "trtllm_mha"}
"""Backends that honour a window over keys and values, and read a window layer's pool by its own indices."""

_ONE_POOL = {"torch_native"}
"""Backends that honour a window where all layers share a pool."""


def check(result: None, server_args: Any, *args: Any, **kwargs: Any) -> None:
    """Check what SGLang has settled on; runs after its own checks.

    Raises:
        SglangStartError: it does not suit the model, which SGLang would not say.
    """
    from sglang.srt.arg_groups.overrides import attention_backends_of, model_config_of, resolving_view

    model_config, settled = model_config_of(server_args), resolving_view(server_args)
    config = model_config.hf_text_config
    if not isinstance(config, FamilyConfig):
        return
    if settled.pp_size > 1:
        raise SglangStartError("our models run in tensor parallel only under SGLang; leave --pp-size out")
    if settled.enable_lora or settled.lora_paths:
        raise SglangStartError(
            "our models take no LoRA adapters under SGLang; leave --enable-lora and --lora-paths out, and merge the "
            "adapter into the checkpoint or serve it with vLLM"
        )
    if model_config.quantization is not None:
        raise SglangStartError(
            f"SGLang is told to quantise {config.family_name} as {model_config.quantization}, which our layers do not "
            "know; leave --quantization out"
        )
    if (stated := stored_quantization(config)) is not None:
        from trillion_serve.plugins.sglang.quantized import scheme_of

        scheme_of(stated)
    if has_windows(config):
        _check_attention(config, model_config.is_hybrid_swa, attention_backends_of(settled))


def _check_attention(config: FamilyConfig, two_pools: bool, backends: tuple[str, str]) -> None:
    honouring = LATENT_BACKENDS if caches_latents(config) else GROUPED_BACKENDS
    allowed = honouring if two_pools else honouring | _ONE_POOL
    for stage, backend in zip(("prefill", "decode"), backends, strict=True):
        if backend not in allowed:
            raise SglangStartError(
                f"the {stage} attention backend {backend!r} does not keep to the {config.sliding_window}-token windows "
                f"of {config.family_name}; start SGLang with --attention-backend triton"
            )
