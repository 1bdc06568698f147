"""A bare virtual environment: the gateway's lock file and our package, as deploy/gateway.Dockerfile installs them."""

import hashlib
import subprocess
import sys
from pathlib import Path

from support.compose import ROOT

ENVIRONMENT = ROOT / ".venv-gateway"
_LOCK = ROOT / "requirements" / "gateway.txt"
_PIP = ("--disable-pip-version-check", "--quiet", "--no-deps")
# Pip says so of each attempt before it gives up.
_NO_CONNECTION = "after connection broken by"


class NoIndexError(Exception):
    """No package index can be reached."""


def make(scratch: Path) -> Path:
    """The environment with the package as it is; what the lock file names is installed only when that has changed.

    Args:
        scratch: an empty folder.

    Returns:
        Its folder.

    Raises:
        NoIndexError: it has to be filled, and no index can be reached.
        RuntimeError: anything else went wrong.
    """
    _fill()
    _run(sys.executable, "-m", "pip", "wheel", *_PIP, "--no-build-isolation", f"--wheel-dir={scratch}", str(ROOT))
    (wheel,) = scratch.glob("*.whl")
    _pip("install", "--no-index", "--force-reinstall", str(wheel))
    return ENVIRONMENT


def _fill() -> None:
    stamp = ENVIRONMENT / "made-from"
    wanted = hashlib.sha256(sys.version.encode() + _LOCK.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    _run(sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT))
    _pip("install", "--retries=1", "--timeout=15", "-r", str(_LOCK))
    stamp.write_text(wanted)


def _pip(command: str, *arguments: str) -> None:
    _run(str(ENVIRONMENT / "bin" / "python"), "-m", "pip", command, *_PIP, *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        kind = NoIndexError if _NO_CONNECTION in done.stderr else RuntimeError
        raise kind(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
