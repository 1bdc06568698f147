"""Attention over paged latents against attention written out plainly, on lengths around block and window edges."""

import pytest
import torch

from trillion_serve.plugins.vllm import cpu_prefill, latent_attention, latent_plan
from trillion_serve.plugins.vllm.latent_plan import DecodeGroup, DecodeRequest, plan_decode, plan_prefill

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


def paged(
    latents: list[torch.Tensor], window: int | None, queries: list[int], order: str = "scattered"
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cache (slots, LATENT) and block table that hold ``latents``, block 0 the null block.

    Blocks before everything that the last ``queries`` tokens of a request see are gone, and whatever belongs to no
    request is NaN, so that reading one number too many shows.
    """
    blocks = [-(-len(latent) // BLOCK) for latent in latents]
    cache = torch.full(((1 + sum(blocks)) * BLOCK, LATENT), float("nan"))
    table = torch.zeros(len(latents), max(blocks) + 2, dtype=torch.int32)
    rising = torch.arange(sum(blocks)) + 1
    orders = {"rising": rising, "falling": rising.flip(0), "scattered": rising[torch.randperm(len(rising))]}
    free = iter(orders[order].tolist())
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
@pytest.mark.parametrize("max_tokens", [1, 30, 4096])
@pytest.mark.parametrize(("piece", "view"), [(7, 2), (16, 9), (2048, 9), (2048, 512)])
@pytest.mark.parametrize("order", ["rising", "falling", "scattered"])
def test_decode_is_plain_attention_over_the_window(monkeypatch, window, max_tokens, piece, view, order):
    monkeypatch.setattr(latent_plan, "PIECE_TOKENS", piece)
    monkeypatch.setattr(latent_plan, "VIEW_TOKENS", view)
    latents = [torch.randn(n, LATENT) for n in LENGTHS]
    q = torch.randn(len(LENGTHS), HEADS, LATENT)
    cache, table = paged(latents, window, [1] * len(LENGTHS), order)
    plan = plan_decode(table, LENGTHS, BLOCK, window, max_tokens)

    out = latent_attention.decode(q, cache, plan, SCALE, torch.empty(4096, LATENT))[..., :RANK]

    for request, latent in enumerate(latents):
        keys = latent[:, None].expand(-1, HEADS, -1)
        expected = plain(q[request], keys, keys[..., :RANK], len(latent) - 1, window)
        torch.testing.assert_close(out[request].double(), expected, atol=1e-5, rtol=1e-5)


def pieces(blocks: list[int], length: int, window: int | None = None) -> list[slice | list[int]]:
    """What one request of ``length`` tokens reads, its blocks being ``blocks``."""
    (request,) = plan_decode(torch.tensor([blocks]), [length], BLOCK, window)
    assert isinstance(request, DecodeRequest)
    return [piece if isinstance(piece, slice) else piece.tolist() for piece in request.pieces]


def test_a_request_reads_neighbouring_blocks_in_place(monkeypatch):
    monkeypatch.setattr(latent_plan, "VIEW_TOKENS", 12)
    assert pieces([3, 4, 5], 20) == [slice(24, 44)]
    assert pieces([5, 4, 3], 24) == [slice(24, 48)]  # order does not matter to one query
    assert pieces([5, 4, 3], 20) == [slice(32, 48), [24, 25, 26, 27]]  # a hole after the newest token
    assert pieces([0, 4, 5], 22, window=13) == [slice(33, 46)]  # the first block was given away
    assert pieces([7, 2, 5], 18) == [[*range(16, 24), 40, 41, *range(56, 64)]]


def test_long_views_and_long_gathers_are_cut(monkeypatch):
    monkeypatch.setattr(latent_plan, "VIEW_TOKENS", 12)
    monkeypatch.setattr(latent_plan, "PIECE_TOKENS", 10)
    assert pieces([3, 4, 5], 24) == [slice(24, 34), slice(34, 44), slice(44, 48)]
    assert pieces([1, 3], 16) == [[*range(8, 16), 24, 25], [*range(26, 32)]]


@pytest.mark.parametrize("max_tokens", [1, 4096])
def test_an_empty_slot_disturbs_nobody(max_tokens):
    latent = torch.randn(30, LATENT)
    q = torch.randn(3, HEADS, LATENT)
    cache, table = paged([latent], None, [1])
    cache[:BLOCK] = 0  # the null block, which an empty slot's table names
    table = torch.cat((torch.zeros_like(table), table, torch.zeros_like(table)))
    plan = plan_decode(table, [0, 30, 0], BLOCK, WINDOW, max_tokens)
    out = latent_attention.decode(q, cache, plan, SCALE, torch.empty(4096, LATENT))
    keys = latent[:, None].expand(-1, HEADS, -1)
    expected = plain(q[1], keys, keys, 29, WINDOW)
    torch.testing.assert_close(out[1].double(), expected, atol=1e-5, rtol=1e-5)
    assert out.isfinite().all()


def test_decode_groups_hold_every_request_once_within_the_budget():
    table = torch.zeros(len(LENGTHS), 20, dtype=torch.int32)
    plan = plan_decode(table, LENGTHS, BLOCK, None, max_tokens=100)
    groups = [part for part in plan if isinstance(part, DecodeGroup)]
    alone = [part.row for part in plan if isinstance(part, DecodeRequest)]
    assert sorted(alone + torch.cat([group.rows for group in groups]).tolist()) == list(range(len(LENGTHS)))
    assert all(len(group.slots) <= 100 for group in groups)
    assert groups


def test_a_request_longer_than_the_budget_decodes_alone():
    table = torch.zeros(4, 20, dtype=torch.int32)
    plan = plan_decode(table, [5, 65, 64, 5], BLOCK, None, max_tokens=16)
    assert [part.row if isinstance(part, DecodeRequest) else part.rows.tolist() for part in plan] == [[0, 3], 2, 1]


def test_requests_of_one_length_need_no_mask():
    table = torch.zeros(3, 20, dtype=torch.int32)
    (group,) = plan_decode(table, [50, 60, 64], BLOCK, WINDOW)
    assert isinstance(group, DecodeGroup)
    assert group.mask is None
    assert len(group.slots) == 3 * WINDOW


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("new_tokens", [2, 7, 8, 9, 20, 21, 40])
@pytest.mark.parametrize("attend", [latent_attention.banded_attention, cpu_prefill.attend])
def test_prefill_is_plain_attention_over_the_window(monkeypatch, window, new_tokens, attend):
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
    latent_attention.prefill(q, cache, requests, expand, window, SCALE, out, attend)

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
    plan = plan_decode(table, [40], BLOCK, WINDOW)
    out = latent_attention.decode(q, cache, plan, SCALE, torch.empty(WINDOW, LATENT))[..., :RANK]
    keys = latent[:, None].expand(-1, HEADS, -1)
    for wrong in (WINDOW - 1, WINDOW + 1):
        expected = plain(q[0], keys, keys[..., :RANK], 39, wrong)
        assert (out[0].double() - expected).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece", [16, 2048])
@pytest.mark.parametrize("max_tokens", [1, 4096])
def test_half_precision_stays_within_its_rounding(monkeypatch, dtype, piece, max_tokens):
    monkeypatch.setattr(latent_plan, "PIECE_TOKENS", piece)
    latents = [torch.randn(n, LATENT) for n in LENGTHS]
    q = torch.randn(len(LENGTHS), HEADS, LATENT)
    cache, table = paged(latents, WINDOW, [1] * len(LENGTHS))
    plan = plan_decode(table, LENGTHS, BLOCK, WINDOW, max_tokens)
    exact = latent_attention.decode(q, cache, plan, SCALE, torch.empty(4096, LATENT))
    half = latent_attention.decode(q.to(dtype), cache.to(dtype), plan, SCALE, torch.empty(4096, LATENT, dtype=dtype))
    assert (half.float() - exact).abs().max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 1, 20, 130])
@pytest.mark.parametrize(("queries", "offset"), [(1, 0), (40, 0), (2, 127), (150, 150)])
def test_vllms_kernel_prefills_as_plain_pytorch_does(dtype, window, queries, offset):
    q = torch.randn(queries, HEADS, 20)
    k, v = torch.randn(2, offset + queries, HEADS, 20)
    expected = torch.empty(queries, HEADS, 16)
    latent_attention.banded_attention(q, k, v, offset, window, SCALE, expected)
    out = torch.empty(queries, HEADS, 16, dtype=dtype)
    cpu_prefill.attend(q.to(dtype), k.to(dtype), v.to(dtype), offset, window, SCALE, out)
    assert (out.float() - expected).abs().max() < 16 * max(torch.finfo(dtype).eps, 1e-6)
