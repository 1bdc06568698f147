"""The command that ``trillion-serve plan`` prints for SGLang, read by SGLang's own parser."""

import shlex
from argparse import ArgumentParser

from trillion_serve.plan.commands import commands
from trillion_serve.plan.memory import Devices
from trillion_serve.plan.models import load_model
from trillion_serve.plan.planning import Settings, make_plan


def test_sglang_reads_every_flag():
    from sglang.srt.server_args import ServerArgs

    parser = ArgumentParser()
    ServerArgs.add_cli_args(parser)
    settings = Settings(context=16_384, ranks=2, kv_dtype="fp8")
    line = commands(make_plan(load_model("vaetki-7b-a1b"), Devices.parse("2x80GiB"), settings))["sglang"].line
    launch, module, *arguments = shlex.split(line)[1:]
    assert (launch, module) == ("-m", "sglang.launch_server")
    read = parser.parse_args(arguments)
    assert (read.context_length, read.tp_size, read.kv_cache_dtype) == (16_384, 2, "fp8_e4m3")
    assert (read.attention_backend, read.grammar_backend) == ("triton", "llguidance")
    assert read.constrained_json_disable_any_whitespace
