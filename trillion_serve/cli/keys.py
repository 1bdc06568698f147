"""``trillion-serve keys``: API keys, made, listed and revoked in a file that holds only their hashes."""

from pathlib import Path
from typing import Annotated

import typer

from trillion_serve.home import home

app = typer.Typer(help="API keys for `trillion-serve serve --keys-file FILE`.", no_args_is_help=True)

File = Annotated[
    Path | None, typer.Option(help="The keys file; `keys.yaml` in the state directory unless given.", dir_okay=False)
]


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Whose key it is; logs and metrics show it.")],
    file: File = None,
    models: Annotated[list[str] | None, typer.Option(help="A model it may use, all unless given. Repeatable.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Prompts and answers together.", min=1)] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests under way.", min=1)] = None,
    admin: Annotated[bool, typer.Option("--admin", help="A key of the admin API, and of nothing else.")] = False,
) -> None:
    """Make a key. It is shown once: only its hash is kept.

    Example: `trillion-serve keys new --name team-a --requests-per-minute 60 --file keys.yaml`
    """
    from trillion_serve.gateway.security.keys import ApiKey, digest_of, new_secret
    from trillion_serve.gateway.security.keys_file import add_key, checked

    secret = new_secret()
    key = ApiKey(
        name=name,
        sha256=digest_of(secret),
        admin=admin,
        models=None if not models else frozenset(models),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
    )
    path = _path(file)
    add_key(path, checked(key))
    typer.echo(f"{name} is in {path}. This is its key; it is not kept, so store it now:", err=True)
    typer.echo(secret)


@app.command("list")
def show(file: File = None) -> None:
    """List the keys of a file.

    Example: `trillion-serve keys list --file keys.yaml`
    """
    from dataclasses import fields

    from trillion_serve.gateway.security.keys_file import read_keys

    for key in read_keys(_path(file)):
        limits = [
            f"{field.name.replace('_', ' ')}: {', '.join(sorted(value)) if field.name == 'models' else value}"
            for field in fields(key)
            if field.name not in ("name", "sha256") and (value := getattr(key, field.name)) not in (None, False)
        ]
        typer.echo("  ".join([key.name, *limits]))


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="Whose key it is.")], file: File = None) -> None:
    """Take a key out of a file. A server that runs goes by it once it reloads (SIGHUP).

    Example: `trillion-serve keys revoke team-a --file keys.yaml`
    """
    from trillion_serve.gateway.security.keys_file import revoke_key

    path = _path(file)
    revoke_key(path, name)
    typer.echo(f"{name} is no longer in {path}", err=True)


def _path(file: Path | None) -> Path:
    return home() / "keys.yaml" if file is None else file
