"""The GPU's backend: how a step is planned without asking the device, and prefill as it computes it."""

from itertools import pairwise

import pytest
import torch
from vllm.v1.attention.backend import AttentionCGSupport

from trillion_model.errors import ConfigError
from trillion_serve.plugins.vllm import latent_attention, latent_plan
from trillion_serve.plugins.vllm.backend import LatentImpl
from trillion_serve.plugins.vllm.fused_backend import (
    FusedBackend,
    FusedImpl,
    FusedMetadata,
    FusedMetadataBuilder,
    PrefillChunk,
    WindowedPrefill,
    plan_prefill,
)

BLOCK, WINDOW, HEADS, RANK, ROPE, NOPE, VALUE = 8, 20, 3, 24, 8, 12, 10
LENGTHS, QUERIES = [5, 20, 33, 64, 41], [5, 2, 20, 21, 1]
WIDTH = 10


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def block_table() -> torch.Tensor:
    return (torch.randperm(len(LENGTHS) * WIDTH) + 1).view(len(LENGTHS), WIDTH).int()


def starts() -> list[int]:
    return torch.tensor([7, *QUERIES]).cumsum(0).tolist()


def planned(table: torch.Tensor, most_keys: int = 10**6, slack: int = 0) -> list[PrefillChunk]:
    """A plan of prefills that follow seven decoded tokens; the host's bounds are ``slack`` too high."""
    return plan_prefill(
        table,
        torch.tensor(LENGTHS, dtype=torch.int32),
        torch.tensor(starts(), dtype=torch.int32),
        [n + slack for n in LENGTHS],
        starts(),
        BLOCK,
        WINDOW,
        most_keys,
    )


@pytest.mark.parametrize("slack", [0, 3])
@pytest.mark.parametrize("most_keys", [1, 60, 10**6])
def test_a_plan_names_what_the_cpus_does(block_table, most_keys, slack):
    expected = latent_plan.plan_prefill(block_table, LENGTHS, [start - 7 for start in starts()], BLOCK, WINDOW)
    requests = iter(expected)
    for chunk in planned(block_table, most_keys, slack):
        rows = chunk.rows.start
        slots = chunk.blocks * BLOCK + chunk.offsets
        spans = zip(pairwise(chunk.query_starts.tolist()), pairwise(chunk.key_starts.tolist()), strict=True)
        for (first, last), (start, stop) in spans:
            request = next(requests)
            assert request.rows == slice(rows + first, rows + last)
            assert slots[start:stop].tolist() == request.slots.tolist()
            assert last - first <= chunk.most_queries
            assert stop - start <= chunk.most_keys
        assert rows + last == chunk.rows.stop
    assert next(requests, None) is None


def test_chunks_hold_no_more_keys_than_there_is_room_for(block_table):
    chunks = planned(block_table, most_keys=60)
    assert [int(chunk.key_starts[-1]) for chunk in chunks] == [5 + 20 + 33, 40 + 20]
    assert len(planned(block_table, most_keys=1)) == len(LENGTHS)


class Recorded(WindowedPrefill):
    """A prefill backend that attends plainly, request by request."""

    def clone(self):
        return self

    def attend(self, q, k, v, chunk, window):
        out = torch.empty(len(q), HEADS, VALUE + 2)  # wider, as padded kernels leave it
        for (first, last), (start, stop) in zip(
            pairwise(chunk.query_starts.tolist()), pairwise(chunk.key_starts.tolist()), strict=True
        ):
            scores = torch.einsum("qhd,khd->hqk", q[first:last], k[start:stop]) * 0.1
            query = torch.arange(stop - start)[-(last - first) :, None]
            key = torch.arange(stop - start)[None]
            seen = (key <= query) & (key > query - window)
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            out[first:last, :, :VALUE] = torch.einsum("hqk,khd->qhd", weights, v[start:stop])
        return out


def impl(kind: type[LatentImpl], kv_cache_dtype: str = "auto", **changes) -> LatentImpl:
    up = torch.randn(RANK, HEADS * (NOPE + VALUE), generator=torch.Generator().manual_seed(1)) / RANK**0.5
    arguments = {
        "num_heads": HEADS,
        "head_size": RANK + ROPE,
        "scale": 0.1,
        "num_kv_heads": 1,
        "alibi_slopes": None,
        "sliding_window": WINDOW,
        "kv_cache_dtype": kv_cache_dtype,
        "logits_soft_cap": None,
        "attn_type": "decoder",
        "kv_sharing_target_layer_name": None,
        "kv_lora_rank": RANK,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "qk_head_dim": NOPE + ROPE,
        "v_head_dim": VALUE,
        "kv_b_proj": lambda x: (x @ up, None),
    }
    return kind(**(arguments | changes))


def prefilled(table: torch.Tensor, cache: torch.Tensor, q: torch.Tensor, flash=None, **more) -> torch.Tensor:
    plan = FusedMetadata(len(q), 0, 0, len(LENGTHS), None, planned(table, most_keys=60, slack=3), flash)
    out = torch.full((len(q), HEADS * VALUE), float("nan"))
    scale = more.pop("scale", torch.ones(1))
    impl(FusedImpl, **more).forward_mha(q, torch.empty(0), torch.empty(0), cache, plan, scale, out)
    return out


@pytest.mark.parametrize("flash", [None, Recorded()])
def test_prefill_is_the_cpus(block_table, flash):
    q = torch.randn(sum(QUERIES), HEADS, NOPE + ROPE)
    cache = torch.randn(1 + block_table.numel(), BLOCK, RANK + ROPE)
    requests = latent_plan.plan_prefill(block_table, LENGTHS, [s - 7 for s in starts()], BLOCK, WINDOW)
    expected = torch.empty(len(q), HEADS, VALUE)
    latent_attention.prefill(q, cache.view(-1, RANK + ROPE), requests, impl(LatentImpl)._expand, WINDOW, 0.1, expected)
    torch.testing.assert_close(prefilled(block_table, cache, q, flash), expected.view(len(q), -1))


def test_prefill_reads_a_cache_in_fp8_by_its_scale(block_table):
    q = torch.randn(sum(QUERIES), HEADS, NOPE + ROPE)
    cache = torch.randn(1 + block_table.numel(), BLOCK, RANK + ROPE).to(torch.float8_e4m3fn)
    out = prefilled(block_table, cache, q, kv_cache_dtype="fp8", scale=torch.tensor([0.5]))
    torch.testing.assert_close(out, prefilled(block_table, cache.float() * 0.5, q))
    assert (out - prefilled(block_table, cache.float(), q)).abs().max() > 1e-2


def test_the_cpus_refuses_a_cache_in_fp8():
    with pytest.raises(ConfigError, match="kv_cache_dtype"):
        impl(LatentImpl, kv_cache_dtype="fp8")


def test_what_it_says_of_itself():
    assert FusedBackend.get_name() == "TRILLION_FUSED_LATENT"
    assert FusedBackend.supports_sliding_window() and FusedBackend.is_mla()
    assert FusedMetadataBuilder._cudagraph_support is AttentionCGSupport.UNIFORM_BATCH
