"""One process of vLLM engines for all tests of the plugin, and the checkpoints that they serve."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

import trillion_model
from support import vllm_engines
from support.tiny_vaetki import published_weights, tiny_model
from trillion_model.vaetki import VaetkiForCausalLM

WINDOW = 32


@pytest.fixture(scope="session")
def engines():
    pool = vllm_engines.pool()
    yield pool
    pool.shutdown()


@pytest.fixture(scope="session")
def model() -> VaetkiForCausalLM:
    """Twelve layers, ten of them local with a window of 32."""
    return tiny_model(num_hidden_layers=12, sliding_window=WINDOW)


@pytest.fixture(scope="session")
def weights(model) -> dict[str, torch.Tensor]:
    """Its published tensors, in float64."""
    return published_weights(model)


@pytest.fixture(scope="session")
def checkpoint(model, tmp_path_factory) -> Path:
    """A directory that holds it."""
    trillion_model.register()
    directory = tmp_path_factory.mktemp("vaetki")
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def start_fails(engines: ProcessPoolExecutor):
    """Start an engine on a directory and give the error's type and message."""

    def start(directory: Path, **options) -> tuple[str, str]:
        return engines.submit(vllm_engines.failure, vllm_engines.Options(str(directory), **options)).result()

    return start
