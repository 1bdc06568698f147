"""LoRA on a CPU for batches in which some requests have an adapter and some have none.

vLLM's own wrapper takes the -1 that stands for "no adapter" as the index of the last one, whose weights it then adds
to requests that asked for the plain model.
"""

import torch
from vllm.config import VllmConfig
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform


def install(config: VllmConfig) -> None:
    """Let vLLM use :class:`MixedBatches` in this process, if it is going to use adapters on a CPU."""
    if config.lora_config is None or not current_platform.is_cpu():
        return
    name = f"{MixedBatches.__module__}.{MixedBatches.__qualname__}"
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: name)


class MixedBatches(PunicaWrapperCPU):
    """vLLM's operations, with nothing passed on for tokens that have no adapter."""

    def _shrink_prefill(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        super()._shrink_prefill(y, x, w_t_all, scale)
        self._leave_out(y)

    def _shrink_decode(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        super()._shrink_decode(y, x, w_t_all, scale)
        self._leave_out(y)

    def _leave_out(self, y: torch.Tensor) -> None:
        y.masked_fill_((self.token_lora_indices == -1)[:, None], 0)
