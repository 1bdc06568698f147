"""The engine of docker-compose.yml, with a tiny VAETKI of random weights."""

import shutil
import sys
from pathlib import Path

import torch

import trillion_model
from support.compose import Compose
from support.local_service import LocalService, free_port
from support.tiny_vaetki import tiny_model

VARIABLES = {"MODEL_DIR": "here", "GRAFANA_PASSWORD": "secret", "ENGINE_CPUS": "1", "KV_CACHE_MEMORY": "64M"}
SMALL = ("--dtype=float32", "--max-model-len=512", "--max-num-batched-tokens=128", "--max-num-seqs=8")
START_SECONDS = 180


class TinyEngine:
    """``vllm serve`` as the ``cpu`` profile starts it, only smaller.

    Args:
        tokenizer_dir: the tokenizer to lay beside the model.
        folder: an empty one for model, caches and log.

    Attributes:
        directory: the model's.
        model: the same in plain PyTorch.
        url: where it answers.
    """

    def __init__(self, tokenizer_dir: Path, folder: Path) -> None:
        trillion_model.register()
        self.directory = folder / "model"
        shutil.copytree(tokenizer_dir, self.directory)
        self.model: torch.nn.Module = tiny_model(vocab_size=512)
        self.model.save_pretrained(self.directory)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        here = {
            "/opt/venv": sys.prefix,
            "/models/model": str(self.directory),
            "/cache": str(folder),
            "0.0.0.0": "127.0.0.1",
            "8001": str(port),
        }
        self.service = LocalService(
            Compose.read(VARIABLES).services["engine-cpu"], here, log=folder / "engine.log", more=SMALL
        )

    def running(self) -> "TinyEngine":
        """The same, started if it is not running."""
        if not self.service.is_running:
            self.service.start(START_SECONDS)
        return self

    def kill(self) -> None:
        """Kill it, as a machine that goes away does."""
        self.service.kill()
