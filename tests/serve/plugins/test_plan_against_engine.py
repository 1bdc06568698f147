"""What ``trillion-serve plan`` says of capacity, against what vLLM itself says."""

from dataclasses import replace
from random import Random

import pytest

from support import vllm_capacity, vllm_engines
from support.vllm_capacity import Case
from support.vllm_engines import Options
from trillion_model.sizes import KvCache, kv_cache
from trillion_serve.plan.capacity import Groups, capacity

pytestmark = pytest.mark.engine

# The engines that test_engine.py starts too.
SETTINGS = [
    {},
    {"kv_cache_mib": 6},
    {"max_model_len": 1024, "max_num_batched_tokens": 1024, "kv_cache_mib": 96},
    {"max_model_len": 1024, "max_num_batched_tokens": 256, "kv_cache_mib": 96},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_running_engine_reports_the_same_capacity(engines, checkpoint, model, settings):
    options = replace(Options(str(checkpoint)), **settings)
    told = engines.submit(vllm_engines.report, options).result()
    fits = capacity(
        kv_cache(model.config),
        dtype="float32",
        memory=options.kv_cache_mib << 20,
        context=options.max_model_len,
        tokens_in_flight=options.max_num_batched_tokens,  # a CPU has one step under way
        block_size=options.block_size,
    )
    assert (fits.blocks, fits.tokens) == (told.blocks, told.capacity)
    assert (Groups.of(kv_cache(model.config)).layers, len(told.groups)) == (2, 6)


def test_the_window_wrong_by_a_block_is_noticed(engines, checkpoint, model):
    told = engines.submit(vllm_engines.report, Options(str(checkpoint))).result()
    wrong = replace(kv_cache(model.config), window=model.config.sliding_window + 16)
    fits = capacity(wrong, dtype="float32", memory=64 << 20, context=256, tokens_in_flight=48, block_size=16)
    assert fits.tokens != told.capacity


def cases() -> list[Case]:
    random = Random(4)
    return [
        Case(
            local_layers=random.randint(1, 40),
            global_layers=random.randint(1, 12),
            window=random.choice([1, 32, 512, 4096]),
            context=random.choice([100, 4096, 32_768]),
            tokens_in_flight=random.choice([1, 256, 4096, 65_536]),
            block_size=random.choice([16, 64, 128]),
        )
        for _ in range(100)
    ]


def test_any_mix_of_layers_is_grouped_as_vllm_groups_it(engines):
    answers = engines.submit(vllm_capacity.blocks_per_request, cases()).result()
    for case, (layers, blocks) in zip(cases(), answers, strict=True):
        cache = KvCache(576, case.local_layers, case.global_layers, case.window)
        fits = capacity(
            cache,
            dtype="bfloat16",
            memory=2**34,
            context=case.context,
            tokens_in_flight=case.tokens_in_flight,
            block_size=case.block_size,
        )
        assert (Groups.of(cache).layers, fits.blocks_per_request) == (layers, blocks), case
