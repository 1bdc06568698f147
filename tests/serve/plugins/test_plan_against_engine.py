"""What ``trillion-serve plan`` says of VAETKI, against what vLLM itself says; other families' tests do so too."""

import shlex
from dataclasses import replace
from random import Random

import pytest

from support import vllm_capacity, vllm_engines
from support.plan_parity import assert_planned
from support.vllm_capacity import Case
from support.vllm_engines import Options
from trillion_model.sizes import KvCache, kv_cache
from trillion_serve.engines.server_flags import STRUCTURED_OUTPUTS
from trillion_serve.plan.capacity import Groups, capacity
from trillion_serve.plan.commands import commands
from trillion_serve.plan.memory import Devices
from trillion_serve.plan.models import load_model
from trillion_serve.plan.planning import Settings, make_plan
from trillion_serve.plan.weights import weigh

pytestmark = pytest.mark.engine

# The engines that test_engine.py starts too.
SETTINGS = [
    {},
    {"kv_cache_mib": 6},
    {"max_model_len": 1024, "max_num_batched_tokens": 1024, "kv_cache_mib": 96},
    {"max_model_len": 1024, "max_num_batched_tokens": 256, "kv_cache_mib": 96},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_running_engine_takes_the_memory_that_was_planned(engines, checkpoint, model, settings):
    options = replace(Options(str(checkpoint)), **settings)
    assert_planned(engines, options)
    told = engines.submit(vllm_engines.report, options).result()
    assert (Groups.of(kv_cache(model.config)).layers, len(told.groups)) == (2, 6)


def test_in_bfloat16_routers_stay_float32(engines, checkpoint):
    """The engine rounds what the files hold in float32; on a CPU, and there only, it keeps the head in float32 too."""
    told = engines.submit(vllm_engines.report, Options(str(checkpoint), dtype="bfloat16")).result()
    whole, rounded = (
        {part.part: part.device for part in weigh(load_model(str(checkpoint)), dtype, 1)}
        for dtype in ("float32", "bfloat16")
    )
    assert told.weights == rounded | {"head": whole["head"]}
    assert {part for part in whole if rounded[part] == whole[part]} == {"router"}


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


def test_vllm_reads_every_flag_of_the_command(engines, checkpoint):
    settings = Settings(context=256, ranks=2, dtype="bfloat16", kv_dtype="fp8", async_scheduling=False)
    line = commands(make_plan(load_model(str(checkpoint)), Devices.parse("2x8GiB"), settings))["vllm"].line
    program, verb, *arguments = shlex.split(line)
    read = engines.submit(vllm_capacity.read_command, arguments).result()
    assert (program, verb, read["model_tag"]) == ("vllm", "serve", str(checkpoint))
    assert (read["tensor_parallel_size"], read["max_model_len"], read["block_size"]) == (2, 256, 64)
    assert (read["kv_cache_dtype"], read["dtype"], read["async_scheduling"]) == ("fp8", "bfloat16", False)
    assert read["structured_outputs"].items() >= STRUCTURED_OUTPUTS.items()
    assert read["enable_prompt_tokens_details"]


@pytest.mark.parametrize("wrong", [["--kv-cache-dtype", "float32"], ["--no-such-flag"]])
def test_vllm_refuses_what_it_does_not_know(engines, wrong):
    with pytest.raises(SystemExit):
        engines.submit(vllm_capacity.read_command, ["model", *wrong]).result()
