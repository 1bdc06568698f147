"""vLLM's LoRA operations on a CPU, with tokens in the batch that have no adapter."""

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from trillion_serve.plugins.vllm.cpu_adapters import MixedBatches

ADAPTER = 7
OWNERS = (0, ADAPTER, ADAPTER, 0, ADAPTER)


def added(kind: type[PunicaWrapperCPU], is_prefill: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What an adapter of rank 2 adds to a layer's output, (tokens, 4), and what it should add to every token."""
    torch.manual_seed(0)
    x, a, b = torch.randn(len(OWNERS), 6), torch.randn(1, 1, 2, 6), torch.randn(1, 1, 4, 2)
    operations = kind(16, 8, device="cpu")
    operations.update_metadata(LoRAMapping(OWNERS, OWNERS, is_prefill=is_prefill), [ADAPTER], 1, 100)
    out = torch.zeros(len(OWNERS), 4)
    operations.add_lora_linear(out, x, (a,), (b,), 0.5, (4,))
    return out, 0.5 * x @ a[0, 0].T @ b[0, 0].T


@pytest.mark.parametrize("is_prefill", [True, False])
def test_tokens_without_an_adapter_stay_as_they_are(is_prefill):
    out, expected = added(MixedBatches, is_prefill)
    owned = torch.tensor(OWNERS) == ADAPTER
    torch.testing.assert_close(out[owned], expected[owned])
    assert (out[~owned] == 0).all()


@pytest.mark.parametrize("is_prefill", [True, False])
def test_vllms_own_operations_change_them(is_prefill):
    """Once this fails, MixedBatches can go."""
    out, expected = added(PunicaWrapperCPU, is_prefill)
    torch.testing.assert_close(out, expected)
