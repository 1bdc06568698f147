"""The flags that a server needs behind our gateway: one source for the commands of a plan, docs and services."""

import json
from pathlib import Path

import pytest

from trillion_serve.engines.server_flags import SGLANG_FLAGS, STRUCTURED_OUTPUTS, VLLM_FLAGS
from trillion_serve.engines.vllm import VllmOptions

ROOT = Path(__file__).parents[3]


def test_our_own_engine_enforces_grammars_as_a_server_must():
    assert VllmOptions("m").engine_args(on_cpu=True)["structured_outputs_config"] == STRUCTURED_OUTPUTS


@pytest.mark.parametrize("file", ["docs/deployment.md", "docker-compose.yml"])
def test_vllm_is_started_with_them(file):
    text = (ROOT / file).read_text(encoding="utf-8").replace('\\"', '"')
    for flag, value in VLLM_FLAGS.items():
        assert f"--{flag}" in text
        assert not isinstance(value, dict) or json.dumps(value) in text


@pytest.mark.parametrize("file", ["docs/deployment.md", "docs/sglang.md"])
def test_sglang_is_started_with_them(file):
    words = " ".join(f"--{flag}" if value is True else f"--{flag} {value}" for flag, value in SGLANG_FLAGS.items())
    assert words in (ROOT / file).read_text(encoding="utf-8")
