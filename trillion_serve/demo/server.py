"""A server of ours in a process of its own."""

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue

from trillion_serve.demo.stages import argv
from trillion_serve.errors import DemoError

_START_SECONDS = 300
_STOP_SECONDS = 40


class ServerProcess:
    """``trillion-serve serve MODEL`` on a port; use it as a context manager.

    Attributes:
        url: the base URL that clients take, with its ``/v1``.
        capacity: its own line on the engine and the KV cache.
        output: everything that it has printed.

    Args:
        model: the model's directory.
        port: port to listen on; 0 takes a free one.
        options: further options of ``trillion-serve serve``.
        log: file that the engine's own messages go to.

    Raises:
        DemoError: the server did not start.
    """

    def __init__(self, model: Path, port: int, options: list[str], log: Path) -> None:
        self.command = ("trillion-serve", "serve", str(model), "--port", str(port), *options)
        self.log = log
        self.output: list[str] = []
        self.url = self.capacity = ""

    def __enter__(self) -> "ServerProcess":
        with self.log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                argv(self.command), stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8"
            )
        lines: Queue[str | None] = Queue()
        threading.Thread(target=self._read, args=(lines.put,), daemon=True).start()
        try:
            while not self.url:
                self._note(lines.get(timeout=_START_SECONDS))
        except Empty:
            self.stop()
            raise DemoError(f"the server did not start in {_START_SECONDS} s; see {self.log}") from None
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def wait(self) -> None:
        """Wait until the server ends by itself or Ctrl-C arrives."""
        try:
            self._process.wait()
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """Let the server finish what it is doing, then end it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _read(self, put: Callable[[str | None], None]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            put(line.rstrip("\n"))
        put(None)

    def _note(self, line: str | None) -> None:
        if line is None:
            raise DemoError(f"the server ended with exit code {self._process.wait()} before it served; see {self.log}")
        self.output.append(line)
        if "KV cache" in line and not self.capacity:
            self.capacity = line
        if line.startswith("Serving "):
            self.url = line.rsplit(" at ", 1)[1]
