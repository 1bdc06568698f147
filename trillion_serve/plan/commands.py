"""The engines' own commands for a plan."""

import shlex
from math import floor

from trillion_serve.plan.planning import Plan


def vllm_command(plan: Plan) -> str:
    """``vllm serve`` with the flags that the plan assumes."""
    settings = plan.settings
    flags: dict[str, object] = {
        "tensor-parallel-size": settings.ranks,
        "max-model-len": settings.context,
        "max-num-batched-tokens": settings.batched_tokens,
        "block-size": settings.block_size,
        "gpu-memory-utilization": settings.utilization,
        "dtype": settings.dtype,
    }
    if settings.kv_dtype != settings.dtype:
        flags["kv-cache-dtype"] = settings.kv_dtype
    command = _command(["vllm", "serve", _path(plan)], flags)
    return command if settings.async_scheduling else f"{command} --no-async-scheduling"


def sglang_command(plan: Plan) -> str:
    """SGLang's server with the flags that mean the same. It divides its memory in a way of its own."""
    settings = plan.settings
    static = (plan.weight_bytes + plan.kv_memory) / plan.devices.memory
    flags: dict[str, object] = {
        "tp-size": settings.ranks,
        "context-length": settings.context,
        "chunked-prefill-size": settings.batched_tokens,
        "mem-fraction-static": floor(100 * static) / 100,
        "dtype": settings.dtype,
    }
    if settings.kv_dtype != settings.dtype:
        flags["kv-cache-dtype"] = {"fp8": "fp8_e4m3"}.get(settings.kv_dtype, settings.kv_dtype)
    if plan.latents and plan.cache.local_layers:
        flags["attention-backend"] = "triton"  # the one that minds a window over latents
    return _command(["python", "-m", "sglang.launch_server", "--model-path", _path(plan)], flags)


def _path(plan: Plan) -> str:
    return f"/path/to/{plan.model}" if plan.preset else plan.model


def _command(words: list[str], flags: dict[str, object]) -> str:
    return shlex.join([*words, *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))])
