"""A plugin of SGLang for tests: its attention in plain PyTorch reads a window layer's pool by that pool's indices.

SGLang 0.5.23 gives the backend indices into the larger pool, which point elsewhere in the smaller one.
"""

from types import SimpleNamespace
from typing import Any


def register() -> None:
    """Mend the backend, and let our plugin take it for one that honours windows."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from trillion_serve.plugins.sglang import start_check

    start_check.LATENT_BACKENDS.add("torch_native")
    start_check.GROUPED_BACKENDS.add("torch_native")
    backend = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"
    for method in ("forward_extend", "forward_decode"):
        HookRegistry.register(f"{backend}.{method}", _translate, HookType.AROUND)
    widen = "sglang.srt.model_executor.model_runner.adjust_config_with_unaligned_cpu_tp"
    HookRegistry.register(widen, _leave, HookType.AROUND)


def _translate(forward: Any, backend: Any, q: Any, k: Any, v: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
    pool, requests = backend.token_to_kv_pool, backend.req_to_token_pool
    if not (backend.use_sliding_window_kv_pool and pool.layers_mapping[layer.layer_id][1]):
        return forward(backend, q, k, v, layer, *args, **kwargs)
    places = pool.translate_loc_from_full_to_swa(requests.req_to_token.long()).long()
    backend.req_to_token_pool = SimpleNamespace(req_to_token=places)
    try:
        return forward(backend, q, k, v, layer, *args, **kwargs)
    finally:
        backend.req_to_token_pool = requests


def _leave(widen: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:
    """The configuration as it is: SGLang widens layers for processors' kernels that are not used here."""
    return model_config
