"""An id for each request, the client's own if it is a sane one."""

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trillion_serve.gateway.ids import new_id
from trillion_serve.request_context import request_id

HEADER = "x-request-id"

# Safe in a log line, in a header and in an engine's own request id.
_SANE = re.compile(r"[A-Za-z0-9._:@+=/-]{1,128}")


def request_id_of(headers: Headers) -> str:
    """The id in a request's headers, or a new one."""
    given = headers.get(HEADER, "")
    return given if _SANE.fullmatch(given) else new_id()


class RequestIds:
    """Puts the id into ``scope["state"]["request_id"]``, the request's context and the response's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        chosen = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = chosen
        request_id.set(chosen)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = chosen
            await send(message)

        await self._app(scope, receive, send_with_id)
