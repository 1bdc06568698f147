"""The decode kernel against attention written out plainly, by Triton's interpreter; on a GPU too where there is one."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import interpreted
from support.paged_latents import Paged, paged
from trillion_serve.plugins.vllm import latent_decode
from trillion_serve.plugins.vllm.latent_decode import Tiling

SCALE = 0.1
WINDOW = 20
# Around the edges of blocks (8), of the window and of tiles (16); 0 is an empty slot.
LENGTHS = [0, 1, 8, 9, 15, 16, 17, 0, 20, 21, 28, 33]
SMALL = Tiling(tokens=16, programs=1024)
WHOLE = Tiling(tokens=16, programs=1)
VAETKI = {"rank": 512, "rope": 64, "block_size": 64}


@pytest.fixture(scope="module")
def interpreter():
    pool = interpreted.pool()
    yield pool
    pool.shutdown()


@pytest.fixture(scope="module")
def attend(interpreter):
    """Run the kernel, interpreted, and give its result in float64."""

    def run(case: Paged, window: int | None, tiling: Tiling = SMALL, **more) -> torch.Tensor:
        arguments = {
            "rank": case.expected.shape[-1],
            "scale": SCALE,
            "window": window,
            "longest": window or max(1, int(case.seq_lens.max())),
            "tiling": tiling,
        }
        return interpreter.submit(interpreted.decode, case, **(arguments | more)).result().double()

    return run


def assert_close(out: torch.Tensor, expected: torch.Tensor, bound: float = 1e-5) -> None:
    assert out.isfinite().all()
    assert (out - expected).abs().max() < bound


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize(("heads", "block_size"), [(12, 8), (16, 20), (24, 16)])
def test_lengths_around_every_edge(attend, window, heads, block_size):
    case = paged(LENGTHS, window, heads=heads, block_size=block_size)
    assert_close(attend(case, window), case.expected)


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("programs", [1, 24])
def test_parts_of_the_context_add_up(attend, window, programs):
    case = paged(LENGTHS, window, heads=3)
    tiling = Tiling(tokens=16, programs=programs)
    assert_close(attend(case, window, tiling), case.expected)


def test_empty_slots_yield_zeros_and_read_nothing(attend):
    case = paged([0, 0, 5], WINDOW)
    case.block_table[:2] = 2**30
    for tiling in (SMALL, WHOLE):
        out = attend(case, WINDOW, tiling)
        assert (out[:2] == 0).all()
        assert_close(out, case.expected)


@pytest.mark.parametrize(("queries", "window"), [(2, None), (3, WINDOW)])
def test_several_queries_of_a_request_see_one_token_more_each(attend, queries, window):
    lengths = [n for n in LENGTHS if n == 0 or n >= queries]
    case = paged(lengths, window, heads=3, queries=queries)
    assert_close(attend(case, window), case.expected)


@pytest.mark.parametrize(("heads", "window"), [(12, None), (24, 512)])
def test_the_sizes_of_vaetki(attend, heads, window):
    case = paged([1, 511, 513], window, heads=heads, **VAETKI)
    assert_close(attend(case, window, Tiling()), case.expected)


def test_more_heads_than_a_program_takes(attend):
    case = paged([5, 40], WINDOW, heads=40)
    assert_close(attend(case, WINDOW), case.expected)


def test_blocks_and_queries_apart_in_memory(attend):
    case = paged(LENGTHS, WINDOW)
    cache = torch.full((len(case.cache), 3, *case.cache.shape[1:]), float("nan"))
    cache[:, 1] = case.cache
    q = torch.cat([case.q, case.q], dim=-1)[..., : case.q.shape[-1]]
    apart = Paged(q, cache[:, 1], case.block_table, case.seq_lens, case.expected)
    assert_close(attend(apart, WINDOW), case.expected)


@pytest.mark.parametrize(
    ("dtype", "tiling"), [(torch.bfloat16, SMALL), (torch.bfloat16, WHOLE), (torch.float16, WHOLE)]
)
def test_half_precision_stays_within_its_rounding(attend, dtype, tiling):
    case = paged(LENGTHS, WINDOW, heads=3, dtype=dtype)
    assert_close(attend(case, WINDOW, tiling), case.expected, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("tiling", [SMALL, WHOLE])
def test_a_cache_in_fp8_is_read_exactly(attend, tiling):
    case = paged(LENGTHS, WINDOW, heads=3, cache_dtype=torch.float8_e4m3fn, cache_scale=0.02)
    assert_close(attend(case, WINDOW, tiling, cache_scale=torch.tensor([0.02])), case.expected)


def test_fp8_costs_no_more_than_its_rounding(attend):
    """A part in 16 at most of each cached number, so that the result is off by a few in a hundred."""
    exact = paged([65, 40], WINDOW)
    rounded = paged([65, 40], WINDOW, cache_dtype=torch.float8_e4m3fn)
    out = attend(rounded, WINDOW, cache_scale=torch.ones(1))
    error = (out - exact.expected).norm() / exact.expected.norm()
    assert 0.005 < error < 0.05


@pytest.mark.parametrize("wrong_by", [-1, 1])
def test_a_window_wrong_by_one_shows(attend, wrong_by):
    case = paged([65], WINDOW, heads=3, wrong_by=wrong_by)
    assert (attend(case, WINDOW) - case.expected).abs().max() > 1e-3


def test_a_token_before_the_window_is_poison(attend):
    case = paged([65], WINDOW, heads=3)
    for tiling in (SMALL, WHOLE):
        assert attend(case, WINDOW + 1, tiling).isnan().any()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    window=st.one_of(st.none(), st.integers(1, 40)),
    heads=st.integers(1, 40),
    block_size=st.sampled_from([1, 4, 16, 17, 64]),
    tokens=st.sampled_from([16, 32]),
    programs=st.sampled_from([1, 16, 256]),
)
def test_any_shape(attend, lengths, window, heads, block_size, tokens, programs):
    case = paged(lengths, window, heads=heads, block_size=block_size, rank=16, rope=16)
    assert_close(attend(case, window, Tiling(tokens=tokens, programs=programs)), case.expected)


def test_the_context_is_split_until_the_device_is_busy():
    assert [latent_decode.splits(rows, 24, 512) for rows in (1, 8, 32, 64, 256, 1000)] == [16, 16, 8, 4, 1, 1]
    assert latent_decode.splits(1, 24, 65536) == 256
    assert latent_decode.splits(1, 40, 65536) == 128


def test_it_compiles_and_fits_a_multiprocessor():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as plain:
        for capability, heads, cache_type in ((80, 16, "bf16"), (90, 32, "bf16"), (90, 32, "fp8e4nv")):
            for made in plain.submit(interpreted.compiled, capability, heads, cache_type, parts=8).result():
                assert made.machine_code > 0
                assert made.shared_memory <= 99 * 1024


on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def to_gpu(case: Paged) -> Paged:
    return Paged(*(tensor.cuda() for tensor in (case.q, case.cache, case.block_table, case.seq_lens, case.expected)))


class TestOnGpu:
    """The same on a device, in bfloat16."""

    pytestmark = on_gpu

    @pytest.mark.parametrize("window", [None, 512])
    @pytest.mark.parametrize("heads", [12, 16, 24])
    @pytest.mark.parametrize("batch", [1, 7, 64])
    def test_the_sizes_of_vaetki(self, window, heads, batch):
        lengths = ([0, 1, 63, 64, 65, 511, 512, 513, 1500, 4097] * 7)[-batch:]
        case = to_gpu(paged(lengths, window, heads=heads, dtype=torch.bfloat16, **VAETKI))
        out = latent_decode.decode(
            case.q, case.cache, case.block_table, case.seq_lens, rank=512, scale=SCALE, window=window,
            longest=window or max(lengths),
        )  # fmt: skip
        assert_close(out.double(), case.expected, 8 * torch.finfo(torch.bfloat16).eps)

    def test_a_captured_graph_follows_lengths_and_blocks(self):
        cases = [
            to_gpu(paged(lengths, 512, heads=24, dtype=torch.bfloat16, seed=seed, **VAETKI))
            for seed, lengths in enumerate(([700, 2, 0, 64], [513, 0, 900, 1], [0, 0, 0, 1000]))
        ]
        width = max(case.block_table.shape[1] for case in cases)
        blocks = max(len(case.cache) for case in cases)
        q, seq_lens = torch.zeros_like(cases[0].q), torch.zeros_like(cases[0].seq_lens)
        cache = torch.zeros(blocks, *cases[0].cache.shape[1:], dtype=torch.bfloat16, device="cuda")
        table = torch.zeros(4, width, dtype=torch.int32, device="cuda")

        def step() -> torch.Tensor:
            return latent_decode.decode(q, cache, table, seq_lens, rank=512, scale=SCALE, window=512, longest=512)

        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step()
        for case in cases:
            q.copy_(case.q)
            seq_lens.copy_(case.seq_lens)
            cache[: len(case.cache)] = case.cache
            table[:, : case.block_table.shape[1]] = case.block_table
            graph.replay()
            assert_close(out.double(), case.expected, 8 * torch.finfo(torch.bfloat16).eps)
