"""A service of docker-compose.yml as a process of this machine: its command, environment and health check."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.compose import ROOT, Dockerfile, Service


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def replaced(text: str, here: Mapping[str, str]) -> str:
    """Text in which what there is in containers is replaced by what there is here instead."""
    for there, instead in here.items():
        text = text.replace(there, instead)
    return text


@dataclass
class LocalService:
    """A service that can be started and stopped.

    Args:
        service: what to run.
        here: what takes the place of container paths, hosts and ports; in this order.
        log: where its output goes.
        more: arguments after those of the service.
    """

    service: Service
    here: Mapping[str, str]
    log: Path
    more: Sequence[str] = ()
    process: subprocess.Popen | None = field(default=None, init=False)

    @property
    def environment(self) -> dict[str, str]:
        """Its environment: that of the image and that of the service, and nothing of this process."""
        return {
            name: replaced(value, self.here)
            for name, value in (self._image.environment | self.service.environment).items()
        }

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def start(self, seconds: float) -> None:
        """Start it in a process group of its own, and return when its health check passes.

        Raises:
            TimeoutError: it does not in time; its log is in the message.
        """
        command = [*self._image.entrypoint, *self.service.command, *self.more]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [replaced(word, self.here) for word in command],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + seconds
        while not self.is_healthy():
            if not self.is_running or time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{' '.join(command)} did not come up:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.5)

    def is_healthy(self) -> bool:
        """Run the health check once."""
        kind, *words = self.service.healthcheck.test
        assert kind == "CMD"
        check = [replaced(word, self.here) for word in words]
        return subprocess.run(check, env=self.environment, capture_output=True, timeout=30, check=False).returncode == 0

    def terminate(self) -> None:
        """Send SIGTERM, as ``docker stop`` does."""
        assert self.process is not None
        self.process.terminate()

    def exit_code(self, seconds: float) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it does not end in time.
        """
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Kill it with all its processes, as a machine that goes away does."""
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def _image(self) -> Dockerfile:
        assert self.service.build is not None, "only our own images are run here"
        return Dockerfile.read(ROOT / self.service.build.dockerfile)
