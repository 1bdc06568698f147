"""What the middleware at the front of the gateway goes by, and what it counts. All of it may change at run time."""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from trillion_serve.errors import ServeError
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.limits.rates import KeyRates
from trillion_serve.gateway.security.keys import ApiKey, Keyring
from trillion_serve.gateway.security.limits import RequestLimits


@dataclass(frozen=True)
class FrontSettings:
    """Who may come in, and with how much.

    Attributes:
        keys: for the API; without any it is open to all.
        admin_keys: for the admin API; without any there is none.
        metrics_public: ``/metrics`` needs no key even if the API does.
        limits: for every request.
    """

    keys: Keyring = field(default_factory=Keyring)
    admin_keys: Keyring = field(default_factory=Keyring)
    metrics_public: bool = True
    limits: RequestLimits = field(default_factory=RequestLimits)


class Front:
    """The settings as they are at the moment, and the requests under way.

    Attributes:
        settings: may be replaced at any time; requests that have come in already are not asked again.
        rates: what keys have used in the last minute, by their names.
    """

    def __init__(self, settings: FrontSettings | None = None) -> None:
        self.settings = settings or FrontSettings()
        self.rates = KeyRates()
        self._under_way: Counter[str | None] = Counter()
        self._ends: set[asyncio.Event] = set()

    @property
    def under_way(self) -> int:
        """Requests under way."""
        return self._under_way.total()

    @contextmanager
    def place(self, key: ApiKey | None) -> Iterator[None]:
        """A place for a request among those under way.

        Raises:
            ApiError: there is none left, in the server or for this key.
        """
        most = self.settings.limits.requests
        name = None if key is None else key.name
        if most is not None and self.under_way >= most:
            raise _busy(f"the server has {most} requests under way, and takes no more", "overloaded")
        if key is not None and key.concurrency is not None and self._under_way[name] >= key.concurrency:
            raise _busy(f"this key may have {key.concurrency} requests under way", "concurrency_exceeded")
        self._under_way[name] += 1
        end = asyncio.Event()
        self._ends.add(end)
        try:
            yield
        finally:
            end.set()
            self._ends.discard(end)
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]

    async def all_ended(self) -> None:
        """Return when the requests that are under way at this moment are over."""
        for end in tuple(self._ends):
            await end.wait()


def _busy(message: str, code: str) -> ApiError:
    return ApiError(f"{message}; try again later", status=429, code=code, headers={"Retry-After": "1"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, keys: Keyring, *, insecure: bool) -> None:
    """Refuse to open the API to other machines by accident.

    Raises:
        ServeError: they could reach it, it asks for no key, and nobody said that this is meant.
    """
    if not is_loopback(host) and not len(keys) and not insecure:
        raise ServeError(
            f"other machines can reach {host}, and no API key is set: make one with `trillion-serve keys new --name "
            "NAME` and pass --keys-file FILE, listen on 127.0.0.1, or open the API to all with --insecure"
        )
