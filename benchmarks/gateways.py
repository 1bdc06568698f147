"""Starts the gateways that benchmarks compare, each pinned to one core, in front of the same upstream."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from trillion_serve.home import home

HERE = Path(__file__).parent
MODEL = "null"
_START_SECONDS = 90.0


@dataclass(frozen=True)
class Running:
    """A server that has been started.

    Attributes:
        name: what tables call it.
        url: base URL, without ``/v1``.
        process: None for what is not ours to measure.
    """

    name: str
    url: str
    process: psutil.Process | None

    @property
    def rss_mib(self) -> float:
        """Resident memory of the process and those it started, in MiB."""
        if self.process is None:
            return 0.0
        family = [self.process, *self.process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family) / 2**20


def cores() -> tuple[int, int]:
    """The core of the client and the upstream, and the core of the gateway under test."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1]


def free_port() -> int:
    """A port of the loopback that is free for now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def started(
    name: str, command: Sequence[str], port: int, core: int, probe: str, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A server until the block ends.

    Args:
        name: what tables call it.
        command: its command line.
        port: where it will listen.
        core: the core that it and its children are pinned to.
        probe: path that answers 200 when it is ready; a chat completion where it ends in ``/completions``.
        env: added to the environment.

    Raises:
        RuntimeError: it is not ready in time; its last messages are in the error.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _ready(process, url + probe):
                log.seek(0)
                raise RuntimeError(f"{name} did not start ({' '.join(command)}):\n{log.read()[-3000:]}")
            yield Running(name, url, psutil.Process(process.pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def upstream(
    core: int, interval_ms: float, token_ids: Sequence[int], chunks: int = 32
) -> AbstractContextManager[Running]:
    """A null upstream, as a context manager."""
    port = free_port()
    command = [sys.executable, str(HERE / "null_upstream.py"), "--port", str(port), "--interval-ms", str(interval_ms)]
    command += ["--token-ids", ",".join(map(str, token_ids)), "--chunks", str(chunks)]
    return started("direct", command, port, core, "/health")


def ours(core: int, tokenizer: Path, upstream_url: str) -> AbstractContextManager[Running]:
    """Our gateway in front of an upstream, as a context manager."""
    port = free_port()
    command = [sys.executable, "-m", "trillion_serve.cli.main", "serve", str(tokenizer), "--port", str(port)]
    command += ["--served-model-name", MODEL, "--engine", "http", "--url", f"vllm={upstream_url}"]
    # Requests that a real engine would let wait: a null upstream has room for all.
    command += ["--max-concurrency", "2000"]
    return started("trillion-serve", command, port, core, "/ready")


def starlette(core: int, upstream_url: str, client: str = "aiohttp") -> AbstractContextManager[Running]:
    """The bare pass-through, with either HTTP client."""
    port = free_port()
    command = [sys.executable, str(HERE / "bare_proxy.py"), "--port", str(port), "--upstream", upstream_url]
    command += ["--client", client]
    return started("starlette" if client == "aiohttp" else f"starlette-{client}", command, port, core, "/health")


def vllm_router(core: int, peers: Path, upstream_url: str) -> AbstractContextManager[Running]:
    """vLLM's router."""
    port = free_port()
    command = [str(peers / "bin/vllm-router"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", upstream_url, "--policy", "round_robin", "--prometheus-port", str(free_port())]
    return started("vllm-router", command, port, core, "/v1/chat/completions")


def sglang_router(core: int, peers: Path, upstream_url: str) -> AbstractContextManager[Running]:
    """SGLang's router."""
    port = free_port()
    command = [str(peers / "bin/sglang-router"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", upstream_url, "--policy", "round_robin", "--prometheus-port", str(free_port())]
    return started("sglang-router", command, port, core, "/v1/chat/completions")


@contextlib.contextmanager
def litellm(core: int, peers: Path, upstream_url: str) -> Iterator[Running]:
    """LiteLLM's proxy."""
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(
            f"model_list: [{{model_name: '{MODEL}', litellm_params: "
            f"{{model: openai/{MODEL}, api_base: '{upstream_url}/v1', api_key: none}}}}]\n"
        )
        config.flush()
        command = [str(peers / "bin/litellm"), "--config", config.name, "--host", "127.0.0.1", "--port", str(port)]
        env = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOG": "ERROR"}
        env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": f"{peers / 'bin'}:{os.environ['PATH']}"}
        with started("litellm", command, port, core, "/v1/chat/completions", env) as running:
            yield running


def peers_environment() -> Path:
    """The environment of the other gateways, made when it is not there.

    Raises:
        subprocess.CalledProcessError: it cannot be made.
    """
    directory = home() / "benchmark-peers"
    wanted = (HERE / "peers.txt").read_text(encoding="utf-8")
    done = directory / "peers.txt"
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        install = [str(directory / "bin/python"), "-m", "pip", "install", "--quiet", "-r", str(HERE / "peers.txt")]
        subprocess.run(install, check=True)
        done.write_text(wanted, encoding="utf-8")
    return directory


def benchmark_tokenizer() -> Path:
    """The demo's tokenizer beside a model configuration, made when it is not there.

    Raises:
        subprocess.CalledProcessError: it cannot be made.
    """
    directory = home() / "benchmark-model"
    if not (directory / "config.json").is_file():
        from trillion_model import presets

        with tempfile.TemporaryDirectory() as scratch:
            train = [sys.executable, "-m", "trillion_training.cli"]
            subprocess.run([*train, "data", "demo", "--out", f"{scratch}/data"], check=True, stdout=sys.stderr)
            data = ["--data", f"{scratch}/data/tokenizer.jsonl", "--vocab-size", "768", "--out", f"{scratch}/tokenizer"]
            subprocess.run([*train, "tokenizer", *data], check=True, stdout=sys.stderr)
            shutil.copytree(f"{scratch}/tokenizer", directory, dirs_exist_ok=True)
        presets.get("vaetki-nano").save_pretrained(directory)
    return directory


def _ready(process: subprocess.Popen[bytes], url: str) -> bool:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            chats = url.endswith("/completions")
            answer = httpx.post(url, json=body, timeout=5) if chats else httpx.get(url, timeout=5)
            if answer.status_code == 200:
                return True
        time.sleep(0.2)
    return False
