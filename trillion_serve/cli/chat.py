"""``trillion-serve chat``: talk to a model in the terminal; its reasoning streams dimmed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from trillion_serve.errors import ServeError

if TYPE_CHECKING:
    from openai import OpenAI

_HELP = "/think on|off   /clear   /exit"


def chat(
    model: Annotated[str | None, typer.Argument(help="Model to serve for this chat, if no --url is given.")] = None,
    url: Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible server.")] = None,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="Key for that server.")] = "none",
    think: Annotated[bool, typer.Option("--think/--no-think", help="Start with thinking on or off.")] = True,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; the server's default unless given.")] = None,
) -> None:
    """Talk to a model. `/think on|off`, `/clear` and `/exit` work while you do; lines may also come from a pipe.

    Example: `trillion-serve chat --url http://127.0.0.1:8000/v1`
    """
    from openai import OpenAI

    if (model is None) == (url is None):
        raise ServeError("name either a MODEL to serve or the --url of a server that runs")
    with contextlib.nullcontext(url) if url else _served(str(model)) as base_url:
        client = OpenAI(base_url=base_url, api_key=api_key)
        Conversation(client, Console(), thinks=think, temperature=temperature).run()


@contextlib.contextmanager
def _served(model: str) -> Iterator[str]:
    """The URL of a server of our own that ends with this chat."""
    command = [sys.executable, "-m", "trillion_serve.cli.main", "serve", model, "--port", "0"]
    # In a session of its own, so that Ctrl-C stops an answer and not the server.
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", **os.environ}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=quiet)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if address := re.search(r"^Serving .* at (http://\S+)$", line):
                yield address[1]
                return
        raise ServeError(f"the server for {model} did not start; its messages are above")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


@dataclass
class Conversation:
    """A chat and its history, of which the server sees answers only, never past reasoning."""

    client: "OpenAI"
    console: Console
    thinks: bool = True
    temperature: float | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def run(self) -> None:
        """Read lines until ``/exit`` or the end of input."""
        self._model = self._first_model()
        if self.console.is_terminal:
            self.console.print(f"{self._model}   {_HELP}", style="bold", markup=False, highlight=False)
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line:
                self._ask(line)

    def _first_model(self) -> str:
        from openai import OpenAIError

        try:
            return self.client.models.list().data[0].id
        except (OpenAIError, IndexError) as error:
            raise ServeError(f"no model answers at {self.client.base_url}: {error}") from error

    def _read(self) -> str | None:
        try:
            return self.console.input("[bold]> [/bold]").strip() if sys.stdin.isatty() else input().strip()
        except (EOFError, KeyboardInterrupt):
            return None

    def _command(self, line: str) -> bool:
        """Obey a line that begins with a slash; false ends the chat."""
        match line.split():
            case ["/exit"]:
                return False
            case ["/clear"]:
                self.messages.clear()
            case ["/think", "on" | "off" as switch]:
                self.thinks = switch == "on"
            case _:
                self.console.print(f"commands: {_HELP}", style="yellow", markup=False, highlight=False)
        return True

    def _ask(self, question: str) -> None:
        """Send a question and show the answer as it streams. Ctrl-C stops it; what came stays in the history."""
        from openai import OpenAIError

        self.messages.append({"role": "user", "content": question})
        options: dict[str, Any] = {} if self.temperature is None else {"temperature": self.temperature}
        answer = ""
        try:
            stream: Any = self.client.chat.completions.create(
                model=self._model,
                messages=self.messages,  # type: ignore[arg-type]
                stream=True,
                extra_body={"chat_template_kwargs": {"enable_thinking": self.thinks}},
                **options,
            )
            with stream:
                reasoned = False
                for chunk in stream:
                    delta = chunk.choices[0].delta if chunk.choices else None
                    if thought := getattr(delta, "reasoning", None):
                        self._show(thought, dim=True)
                        reasoned = True
                    if delta and delta.content:
                        self._show("\n\n" if reasoned and not answer else "")
                        self._show(delta.content)
                        answer += delta.content
        except KeyboardInterrupt:
            self._show(" …")
        except OpenAIError as error:
            self.console.print(f"error: {error}", style="red", markup=False, highlight=False)
            self.messages.pop()
            return
        self._show("\n")
        self.messages.append({"role": "assistant", "content": answer})

    def _show(self, text: str, *, dim: bool = False) -> None:
        self.console.print(
            text, end="", style="dim" if dim else None, markup=False, highlight=False, soft_wrap=True, emoji=False
        )
