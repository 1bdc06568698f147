"""Seeded requests on a CPU whose prompt is read in several steps.

vLLM samples after each of these steps, and takes back what a token that nobody sees drew from the request's generator.
A CPU's generator cannot go back, which ends the engine. Here such a token draws from another one instead.
"""

from typing import Any

import numpy as np
from vllm.platforms import current_platform


def install() -> None:
    """Let vLLM's runner in this process spare the generators of tokens that are thrown away, if it runs on a CPU."""
    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if getattr(CPUModelRunner._sample, "spares_generators", False):
        return
    sample, keep_books = CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync

    def sample_sparing(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        unseen = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        self.spared_generators = {int(i): generators.pop(int(i)) for i in unseen if int(i) in generators}
        return sample(self, *args, **kwargs)

    def keep_books_and_return(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = keep_books(self, *args, **kwargs)
        self.input_batch.generators.update(self.spared_generators)
        return kept

    sample_sparing.spares_generators = True  # type: ignore[attr-defined]
    CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync = sample_sparing, keep_books_and_return
