"""The GPU benchmark where there is no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attention_gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_it_says_in_one_line_that_there_is_none(tmp_path):
    wanted = tmp_path / "results.json"
    out = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--json", wanted], capture_output=True, text=True, check=False
    )
    assert out.returncode == 1
    assert out.stdout == ""
    assert out.stderr == "This benchmark needs a CUDA device, and PyTorch finds none here.\n"
    assert not wanted.exists()
