"""Logs what goes in and out of the API, for those who ask for it: it is what people write and are told."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("trillion_serve.bodies")

_MOST_BYTES = 64 * 2**10
_LOGGED = ("/v1/", "/tokenize", "/detokenize")
"""Keys are made and shown elsewhere."""


class BodyLog:
    """Logs the beginning of each body, up to ``most_bytes``."""

    def __init__(self, app: ASGIApp, most_bytes: int = _MOST_BYTES) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or not scope["path"].startswith(_LOGGED):
            await self._app(scope, receive, send)
            return
        came, went = bytearray(), bytearray()

        async def receive_and_keep() -> Message:
            message = await receive()
            self._keep(came, message)
            return message

        async def keep_and_send(message: Message) -> None:
            self._keep(went, message)
            await send(message)

        try:
            await self._app(scope, receive_and_keep, keep_and_send)
        finally:
            logger.info(
                "bodies of %s %s",
                scope["method"],
                scope["path"],
                extra={"request_body": _text(came), "response_body": _text(went)},
            )

    def _keep(self, body: bytearray, message: Message) -> None:
        body += message.get("body", b"")[: self._most_bytes - len(body)]


def _text(body: bytearray) -> str | None:
    return body.decode("utf-8", "replace") or None
