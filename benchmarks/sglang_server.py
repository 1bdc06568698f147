"""A small SGLang server, in the environment of its own that ``scripts/setup-sglang.sh .venv-sglang`` makes.

On a CPU it needs the shims of the tests, which stand for kernels that are published for AMX only.
"""

import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from trillion_convert.errors import RunError

HOME = Path(__file__).parents[1]
PYTHON = HOME / ".venv-sglang" / "bin" / "python"
SHIMS = HOME / "tests" / "support" / "sglang_cpu"
START_SECONDS = 240.0
STOP_SECONDS = 20.0

ARGUMENTS = (
    "--attention-backend=torch_native",
    "--device=cpu",
    "--grammar-backend=none",
    "--sampling-backend=pytorch",
    "--disable-overlap-schedule",
    "--skip-server-warmup",
    "--skip-tokenizer-init",
    "--host=127.0.0.1",
    "--page-size=1",
    "--context-length=512",
    "--max-total-tokens=2048",
    "--chunked-prefill-size=64",
    "--max-running-requests=8",
)


def is_installed() -> bool:
    """Whether the environment is there."""
    return PYTHON.is_file()


class SglangProcess:
    """A server of one model, running once this is made.

    Args:
        directory: the model's.
        dtype: name of the dtype to run in.

    Raises:
        RunError: it does not start; its output is kept, in a file that the message names.
    """

    def __init__(self, directory: Path, dtype: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        descriptor, name = tempfile.mkstemp(prefix="sglang-", suffix=".log")
        self._log = Path(name)
        environment = {"PYTHONPATH": str(SHIMS), "SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}
        command = [PYTHON, "-m", "sglang.launch_server", f"--model-path={directory}", f"--dtype={dtype}"]
        self._process = subprocess.Popen(
            [*command, f"--port={port}", *ARGUMENTS],
            env=os.environ | environment,
            stdout=descriptor,
            stderr=descriptor,
            # Its own children are of its group, and are ended with it.
            start_new_session=True,
        )
        os.close(descriptor)
        self._wait()

    def close(self) -> None:
        """End it and its children."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 15)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._log.unlink(missing_ok=True)

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        lines = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        kept = self._log.rename(self._log.with_suffix(".failed.log"))
        self.close()
        raise RunError(f"SGLang did not start: {lines[-1]}; its output is in {kept}")
