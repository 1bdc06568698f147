"""The gateway of docker-compose.yml in front of its engine, both as processes of this machine."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import gateway_environment
from support.compose import ROOT, Compose
from support.gateway_process import GatewayProcess
from support.local_service import LocalService, free_port, replaced
from support.tiny_engine import VARIABLES, TinyEngine


@pytest.fixture(scope="session")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway's own virtual environment."""
    try:
        return gateway_environment.make(tmp_path_factory.mktemp("wheel"))
    except gateway_environment.NoIndexError as error:
        pytest.skip(f"no package index can be reached: {error}")


@pytest.fixture(scope="session")
def _gateway(
    bare_environment: Path, _vllm_server: TinyEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    service = Compose.read(VARIABLES).services["gateway"]
    folder, port = tmp_path_factory.mktemp("gateway"), free_port()
    here = {
        "/opt/venv": str(bare_environment),
        "/models/model": str(_vllm_server.directory),
        "/etc/trillion-serve": str(folder),
        "http://engine:8001": _vllm_server.url,
        "0.0.0.0": "127.0.0.1",
        "8000": str(port),
    }
    config = (ROOT / "deploy" / "gateway" / "gateway.yaml").read_text(encoding="utf-8")
    (folder / "gateway.yaml").write_text(replaced(config, here), encoding="utf-8")
    running = LocalService(service, here, log=folder / "gateway.log")
    make_key = ["trillion-serve", "keys", "new", "--name=test", f"--file={folder / 'keys.yaml'}"]
    made = subprocess.run(make_key, env=running.environment, capture_output=True, text=True, check=True)
    yield GatewayProcess(running, f"http://127.0.0.1:{port}", made.stdout.strip())
    running.kill()


@pytest.fixture
def gateway(vllm_server: TinyEngine, _gateway: GatewayProcess) -> GatewayProcess:
    """A running gateway with a running engine; it is started anew if a test has ended it."""
    if not _gateway.service.is_running:
        _gateway.service.start(60)
    return _gateway
