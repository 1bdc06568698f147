"""A decode step at a long context without the prefill before it: vLLM's own connector for that, with a switch."""

from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.decode_bench_connector import DecodeBenchConnector


class FilledContext(DecodeBenchConnector):
    """Says that a prompt's keys and values are in the cache already, which is full of random numbers.

    Attributes:
        filling: whether it does; otherwise prompts are computed.
    """

    filling: ClassVar[bool] = False

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens of a request's prompt to take for computed."""
        return super().get_num_new_matched_tokens(request, num_computed_tokens) if self.filling else (0, False)
