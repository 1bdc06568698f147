"""The ``trillion-serve`` command. Each subcommand is a module here that imports what is heavy when it runs."""

import typer
from rich.console import Console

from trillion_model.errors import TrillionError
from trillion_serve.cli.chat import chat
from trillion_serve.cli.demo import demo
from trillion_serve.cli.keys import app as keys
from trillion_serve.cli.plan import plan
from trillion_serve.cli.serve import serve

app = typer.Typer(
    name="trillion-serve",
    help="Serve VAETKI, Trillion and Llama-shaped models behind the OpenAI API, with thinking under control.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(chat)
app.command()(demo)
app.command()(plan)
app.add_typer(keys, name="keys")


def main() -> None:
    """Run the command; an error of ours is one line and exit code 1."""
    try:
        app()
    except TrillionError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
