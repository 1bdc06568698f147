"""Every family in SGLang as two processes that share each layer, against a plain reference in float64."""

import os

import pytest

from support.sglang_parity import NEW_TOKENS, assert_agrees, random_prompts
from support.sglang_references import REFERENCES
from support.sglang_server import CHUNK, SglangServer

pytestmark = pytest.mark.engine

LENGTHS = [2, 15, 17, CHUNK - 1, CHUNK + 1, 200]


@pytest.mark.parametrize("family", list(REFERENCES))
def test_two_ranks_agree_with_the_reference(family, models, checkpoints, monkeypatch, tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
    server = SglangServer(checkpoints[family], tmp_path / "server.log")
    prompts = random_prompts(LENGTHS)
    try:
        server.start(["--tp-size=2"])
        answers = server.generate(prompts, NEW_TOKENS)
    finally:
        server.kill()
    assert_agrees(REFERENCES[family](models[family]), prompts, answers)
