"""The engines' own commands for a plan."""

import json
import shlex
from dataclasses import dataclass
from math import floor

from trillion_serve.engines.server_flags import SGLANG_FLAGS, VLLM_FLAGS, Flags
from trillion_serve.plan.models import PLAIN_LLAMA
from trillion_serve.plan.planning import Plan


@dataclass(frozen=True)
class Command:
    """How an engine is started.

    Attributes:
        line: for a shell; None where the engine cannot run the plan.
        note: what is to know of it; empty where that is nothing.
    """

    line: str | None
    note: str = ""


def commands(plan: Plan) -> dict[str, Command]:
    """The command of each engine."""
    return {"vllm": Command(_vllm(plan)), "sglang": _sglang(plan)}


def _vllm(plan: Plan) -> str:
    settings = plan.settings
    flags: Flags = {
        "tensor-parallel-size": settings.ranks,
        "max-model-len": settings.context,
        "max-num-batched-tokens": settings.batched_tokens,
        "block-size": settings.block_size,
        "gpu-memory-utilization": settings.utilization,
        "dtype": settings.dtype,
    }
    if settings.kv_dtype != settings.dtype:
        flags["kv-cache-dtype"] = settings.kv_dtype
    if not settings.async_scheduling:
        flags["no-async-scheduling"] = True
    return _line(["vllm", "serve", _path(plan)], flags | VLLM_FLAGS)


def _sglang(plan: Plan) -> Command:
    """SGLang's server with the flags that mean the same. It divides its memory in a way of its own."""
    settings, ours = plan.settings, plan.model_type != PLAIN_LLAMA
    if plan.quantization is not None and ours:
        return Command(
            None,
            "no command: it dequantises this checkpoint as it loads, and needs the memory of the one that it was made "
            "of; plan for that one",
        )
    static = (plan.weight_bytes + plan.kv_memory) / plan.devices.memory
    flags: Flags = {
        "tp-size": settings.ranks,
        "context-length": settings.context,
        "chunked-prefill-size": settings.batched_tokens,
        "mem-fraction-static": floor(100 * static) / 100,
        "dtype": settings.dtype,
    }
    if settings.kv_dtype != settings.dtype:
        flags["kv-cache-dtype"] = "fp8_e4m3"
    if plan.latents and plan.cache.local_layers:
        flags["attention-backend"] = "triton"  # the one that minds a window over latents
    line = _line(["python", "-m", "sglang.launch_server", "--model-path", _path(plan)], flags | SGLANG_FLAGS)
    untried = settings.ranks > 1 and ours
    return Command(line, "not tried: tensor parallelism of our models was never run there" if untried else "")


def _path(plan: Plan) -> str:
    return f"/path/to/{plan.model}" if plan.preset else plan.model


def _line(words: list[str], flags: Flags) -> str:
    for flag, value in flags.items():
        words = [*words, f"--{flag}"]
        if value is not True:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return shlex.join(words)
