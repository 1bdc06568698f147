"""What becomes of keys and limits when a configuration is read again: what may, and what is told of it."""

from collections.abc import Iterator
from dataclasses import asdict

from trillion_serve.errors import ServeError
from trillion_serve.gateway.security.front import FrontSettings
from trillion_serve.gateway.security.keys import Keyring


def check_still_closed(before: FrontSettings, after: FrontSettings, *, insecure: bool) -> None:
    """Refuse to do without keys from one moment to the next: that is how a mistake in a file looks.

    Raises:
        ServeError: there were keys, or admin keys, there would be none, and nobody said that this is meant.
    """
    if insecure:
        return
    for what, effect, old, new in (
        ("API key", "open the API to all", before.keys, after.keys),
        ("admin key", "turn the admin API off", before.admin_keys, after.admin_keys),
    ):
        if len(old) and not len(new):
            raise ServeError(
                f"keys: the configuration has no {what} any more, which would {effect}; if that is meant, restart, "
                "or set server.insecure"
            )


def changes(before: FrontSettings, after: FrontSettings) -> list[str]:
    """What is different, a line each. No hash is told."""
    told = [*_keys("key", before.keys, after.keys), *_keys("admin key", before.admin_keys, after.admin_keys)]
    old, new = asdict(before.limits), asdict(after.limits)
    told += [f"limit {name} changed from {old[name]} to {new[name]}" for name in new if old[name] != new[name]]
    if before.metrics_public != after.metrics_public:
        told.append("metrics need no key" if after.metrics_public else "metrics need a key")
    return told


def _keys(what: str, before: Keyring, after: Keyring) -> Iterator[str]:
    old, new = {key.name: key for key in before}, {key.name: key for key in after}
    yield from (f"{what} {name} added" for name in new if name not in old)
    yield from (f"{what} {name} changed" for name in new if name in old and old[name] != new[name])
    yield from (f"{what} {name} removed" for name in old if name not in new)
