"""Attention over paged latents against attention written out plainly, on lengths around block and window edges."""

import pytest
import torch

from trillion_serve.plugins.vllm import latent_attention
from trillion_serve.plugins.vllm.latent_attention import plan_decode, plan_prefill

BLOCK = 8
WINDOW = 20
HEADS, RANK, ROPE, NOPE, VALUE = 3, 24, 8, 12, 10
LATENT = RANK + ROPE
SCALE = (NOPE + ROPE) ** -0.5
LENGTHS = [1, 2, 7, 8, 9, 19, 20, 21, 27, 28, 29, 40, 41, 64, 65]
WINDOWS = [None, WINDOW]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def paged(latents: list[torch.Tensor], window: int | None, queries: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A cache (slots, LATENT) and block table that hold ``latents``, block 0 the null block.

    Blocks before everything that the last ``queries`` tokens of a request see are gone, and whatever belongs to no
    request is NaN, so that reading one number too many shows.
    """
    blocks = [-(-len(latent) // BLOCK) for latent in latents]
    cache = torch.full(((1 + sum(blocks)) * BLOCK, LATENT), float("nan"))
    table = torch.zeros(len(latents), max(blocks) + 2, dtype=torch.int32)
    free = iter((torch.randperm(sum(blocks)) + 1).tolist())
    for request, latent in enumerate(latents):
        first_query = len(latent) - queries[request]
        first = 0 if window is None else max(0, first_query - window + 1)
        for block in range(first // BLOCK, blocks[request]):
            table[request, block] = next(free)
            page = latent[max(first, block * BLOCK) : (block + 1) * BLOCK]
            start = int(table[request, block]) * BLOCK + max(first - block * BLOCK, 0)
            cache[start : start + len(page)] = page
    return cache, table


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: int, window: int | None) -> torch.Tensor:
    """One query (heads, dim) at ``position`` over keys (tokens, heads, dim), in float64."""
    first = 0 if window is None else max(0, position - (window - 1))
    k, v = k[first : position + 1].double(), v[first : position + 1].double()
    scores = torch.einsum("hd,khd->hk", q.double(), k) * SCALE
    return torch.einsum("hk,khd->hd", scores.softmax(-1), v)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("max_tokens", [1, 30, 100, 4096])
@pytest.mark.parametrize("piece", [7, 16, 2048])
def test_decode_is_plain_attention_over_the_window(monkeypatch, window, max_tokens, piece):
    monkeypatch.setattr(latent_attention, "PIECE_TOKENS", piece)
    latents = [torch.randn(n, LATENT) for n in LENGTHS]
    q = torch.randn(len(LENGTHS), HEADS, LATENT)
    cache, table = paged(latents, window, [1] * len(LENGTHS))
    groups = plan_decode(table, LENGTHS, BLOCK, window, max_tokens)
    workspace = torch.empty(max(len(group.slots) for group in groups), LATENT)

    out = latent_attention.decode(q, cache, groups, SCALE, workspace)[..., :RANK]

    for request, latent in enumerate(latents):
        keys = latent[:, None].expand(-1, HEADS, -1)
        expected = plain(q[request], keys, keys[..., :RANK], len(latent) - 1, window)
        torch.testing.assert_close(out[request].double(), expected, atol=1e-5, rtol=1e-5)


def test_decode_groups_hold_every_request_once_within_the_budget():
    table = torch.zeros(len(LENGTHS), 20, dtype=torch.int32)
    groups = plan_decode(table, LENGTHS, BLOCK, None, max_tokens=100)
    assert sorted(torch.cat([group.rows for group in groups]).tolist()) == list(range(len(LENGTHS)))
    assert all(len(group.slots) <= 100 for group in groups)
    assert len(groups) < len(LENGTHS)


def test_a_request_longer_than_the_budget_decodes_alone():
    table = torch.zeros(3, 20, dtype=torch.int32)
    groups = plan_decode(table, [5, 65, 64], BLOCK, None, max_tokens=16)
    assert [group.rows.tolist() for group in groups] == [[0], [2], [1]]


def test_requests_of_one_length_need_no_mask():
    table = torch.zeros(3, 20, dtype=torch.int32)
    (group,) = plan_decode(table, [50, 60, 64], BLOCK, WINDOW)
    assert group.mask is None
    assert len(group.slots) == 3 * WINDOW


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("new_tokens", [2, 7, 8, 9, 20, 21, 40])
@pytest.mark.parametrize("key_chunk", [5, 16, 2048])
def test_prefill_is_plain_attention_over_the_window(monkeypatch, window, new_tokens, key_chunk):
    monkeypatch.setattr(latent_attention, "KEY_CHUNK", key_chunk)
    monkeypatch.setattr(latent_attention, "QUERY_BLOCK", 8)
    lengths = [n for n in LENGTHS if n >= new_tokens]
    latents = [torch.randn(n, LATENT) for n in lengths]
    starts = [i * new_tokens for i in range(len(lengths) + 1)]
    up = torch.randn(RANK, HEADS, NOPE + VALUE) / RANK**0.5

    def expand(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k_nope, v = torch.einsum("kr,rhd->khd", latent[:, :RANK], up).split([NOPE, VALUE], dim=-1)
        k = torch.cat([k_nope, latent[:, None, RANK:].expand(-1, HEADS, -1)], dim=-1)
        return k, torch.nn.functional.pad(v, (0, NOPE + ROPE - VALUE))

    q = torch.randn(starts[-1], HEADS, NOPE + ROPE)
    cache, table = paged(latents, window, [new_tokens] * len(lengths))
    requests = plan_prefill(table, lengths, starts, BLOCK, window)
    out = torch.full((starts[-1], HEADS, VALUE), float("nan"))
    latent_attention.prefill(q, cache, requests, expand, window, SCALE, out)

    for request, latent in enumerate(latents):
        k, v = expand(latent)
        for i in range(new_tokens):
            expected = plain(q[starts[request] + i], k, v[..., :VALUE], len(latent) - new_tokens + i, window)
            torch.testing.assert_close(out[starts[request] + i].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 5, 16, 17])
@pytest.mark.parametrize("offset", [0, 1, 16, 33])
@pytest.mark.parametrize("query_block", [1, 4, 16, 64])
def test_blocks_of_queries_do_not_show(window, offset, query_block):
    queries = 37
    q = torch.randn(queries, HEADS, 8)
    k, v = torch.randn(2, offset + queries, HEADS, 8)
    out = torch.empty(queries, HEADS, 8)
    latent_attention.banded_attention(q, k, v, offset, window, SCALE, out, query_block)
    for i in range(queries):
        torch.testing.assert_close(out[i].double(), plain(q[i], k, v, offset + i, window), atol=1e-5, rtol=1e-5)


def test_a_window_wrong_by_one_shows():
    latent = torch.randn(40, LATENT)
    q = torch.randn(1, HEADS, LATENT)
    cache, table = paged([latent], None, [1])
    groups = plan_decode(table, [40], BLOCK, WINDOW)
    out = latent_attention.decode(q, cache, groups, SCALE, torch.empty(WINDOW, LATENT))[..., :RANK]
    keys = latent[:, None].expand(-1, HEADS, -1)
    for wrong in (WINDOW - 1, WINDOW + 1):
        expected = plain(q[0], keys, keys[..., :RANK], 39, wrong)
        assert (out[0].double() - expected).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece", [16, 2048])
def test_half_precision_stays_within_its_rounding(monkeypatch, dtype, piece):
    monkeypatch.setattr(latent_attention, "PIECE_TOKENS", piece)
    latents = [torch.randn(n, LATENT) for n in LENGTHS]
    q = torch.randn(len(LENGTHS), HEADS, LATENT)
    cache, table = paged(latents, WINDOW, [1] * len(LENGTHS))
    groups = plan_decode(table, LENGTHS, BLOCK, WINDOW, max_tokens=1)
    exact = latent_attention.decode(q, cache, groups, SCALE, torch.empty(4096, LATENT))
    half = latent_attention.decode(q.to(dtype), cache.to(dtype), groups, SCALE, torch.empty(4096, LATENT, dtype=dtype))
    assert (half.float() - exact).abs().max() < 8 * torch.finfo(dtype).eps
