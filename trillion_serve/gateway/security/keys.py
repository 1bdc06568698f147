"""API keys: random strings, of which only a hash is kept.

A key is 256 random bits, so that its SHA-256 is enough to keep: slow password hashes protect secrets that can be
guessed, and these cannot.
"""

import hmac
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated

from pydantic import Field

PREFIX = "tsk-"
"""Keys begin with it, so that scanners for leaked secrets can find them."""

_Limit = Annotated[int, Field(ge=1)] | None


@dataclass(frozen=True)
class ApiKey:
    """A key as the server keeps it.

    Attributes:
        name: whose it is, for logs and metrics.
        sha256: hash of the key, in hexadecimal.
        admin: it opens the admin API, and nothing else.
        models: names of the models it may use; None for all.
        requests_per_minute: None for no limit, as below.
        tokens_per_minute: of prompts, counted when they are taken on, and of answers, counted when they end.
        concurrency: requests under way.
    """

    name: Annotated[str, Field(pattern=r"^[\w.@-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = field(repr=False)
    admin: bool = False
    models: frozenset[str] | None = None
    requests_per_minute: _Limit = None
    tokens_per_minute: _Limit = None
    concurrency: _Limit = None

    def allows(self, model: str) -> bool:
        """Whether it may use a model."""
        return self.models is None or model in self.models


class Keyring:
    """The keys that a server knows. Its text shows none of their hashes."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, secret: str) -> ApiKey | None:
        """The key that a caller holds. It takes the same time whichever it is, and if it is none."""
        digest = digest_of(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found


def new_secret() -> str:
    """A key to hand out, once."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """What is kept of a key."""
    return sha256(secret.encode()).hexdigest()
