"""SGLang's tests run where SGLang is installed: ``make test-sglang``. One server runs at a time."""

import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch

import trillion_model
from support import tiny_gravity, tiny_tri70b, tiny_trillion, tiny_vaetki
from support.sglang_server import SglangServer

collect_ignore_glob = [] if any(distributions(name="sglang")) else ["test_*.py"]

TOKENS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
"""As the tokenizer has them."""
VOCABULARY = 512
"""As many as the tokenizer has at most."""

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


@pytest.fixture(scope="session")
def models() -> dict[str, torch.nn.Module]:
    """A tiny model of each family, random weights in float32."""
    torch.set_num_threads(1)  # more of them, beside a server, only wait for each other at these sizes
    return {
        "vaetki": tiny_vaetki.tiny_model(vocab_size=VOCABULARY, **TOKENS),
        "trillion_7b": tiny_trillion.tiny_model(vocab_size=VOCABULARY, num_nextn_predict_layers=0),
        "tri70b": tiny_tri70b.tiny_model(vocab_size=VOCABULARY),
        "gravity": tiny_gravity.tiny_model(
            vocab_size=VOCABULARY, n_group=4, topk_group=2, rope_parameters={"rope_theta": 10_000.0} | YARN
        ),
    }


@pytest.fixture(scope="session")
def checkpoints(models, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each, with our tokenizer."""
    trillion_model.register()
    directories = {}
    for family, model in models.items():
        directories[family] = tmp_path_factory.mktemp("models") / family
        shutil.copytree(tokenizer_dir, directories[family])
        model.save_pretrained(directories[family])
    return directories


@pytest.fixture(scope="session")
def serving(checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], SglangServer]]:
    """Gives a running server of a family, and stops the one of another."""
    running: dict[str, SglangServer] = {}

    def serve(family: str) -> SglangServer:
        if family not in running:
            stop()
            server = SglangServer(checkpoints[family], tmp_path_factory.mktemp("sglang") / "server.log")
            server.start()
            running[family] = server
        return running[family]

    def stop() -> None:
        while running:
            running.popitem()[1].kill()

    yield serve
    stop()
