"""Middleware that gives each request a place and its caller's limits, or 429."""

from contextlib import ExitStack

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trillion_serve.gateway.errors import ApiError, response_of
from trillion_serve.gateway.limits.call import Call
from trillion_serve.gateway.limits.rates import KeyRates
from trillion_serve.gateway.security.authentication import Zone, zone_of
from trillion_serve.gateway.security.front import Front
from trillion_serve.gateway.security.keys import ApiKey


class Throttle:
    """Counts requests to the API. It stands behind ``Authentication``, which says whose they are."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or zone_of(scope["path"]) is not Zone.API:
            await self._app(scope, receive, send)
            return
        key: ApiKey | None = scope["state"]["key"]
        rates = self._front.rates
        with ExitStack() as held:
            if scope["method"] == "POST":
                try:
                    held.enter_context(self._front.place(key))
                    if key is not None:
                        await rates.take(key, "requests", 1)
                except ApiError as refusal:
                    await response_of(refusal)(scope, receive, send)
                    return
            held.enter_context(Call(key, rates, self._front.settings.limits.prompt_tokens).current())
            await self._app(scope, receive, send if key is None else _telling(key, rates, send))


def _telling(key: ApiKey, rates: KeyRates, send: Send) -> Send:
    """Sends what a key has left along with each response."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(await rates.headers(key))
        await send(message)

    return tell
