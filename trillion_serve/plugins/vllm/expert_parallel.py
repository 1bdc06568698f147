"""Refuses expert parallel where vLLM's kernel for experts reads past its weights: on a CPU."""

from vllm.config import VllmConfig
from vllm.platforms import current_platform

from trillion_serve.errors import EngineStartError


def check(config: VllmConfig) -> None:
    """Refuse experts in parallel on a CPU.

    Raises:
        EngineStartError: they were asked for there.
    """
    if current_platform.is_cpu() and config.parallel_config.enable_expert_parallel:
        raise EngineStartError("vLLM cannot run experts in parallel on a CPU; leave --enable-expert-parallel out")
