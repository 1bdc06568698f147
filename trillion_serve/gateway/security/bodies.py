"""Bodies that are too large, too slow or too deeply nested are refused before anything parses them."""

import asyncio
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trillion_serve.gateway.errors import ApiError, response_of
from trillion_serve.gateway.security.front import Front
from trillion_serve.gateway.security.limits import RequestLimits

_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
_LONG_BYTES = 4 * 2**10
# Brackets outside strings. Possessive, so that no input makes it try twice; a string may lack its end.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


class BodyGuard:
    """Reads bodies, never keeping more than the limit of one, and hands them on whole.

    ``scope["state"]`` gets the ``limits`` for what else is in them.
    """

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or refuse it."""
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        limits = self._front.settings.limits
        try:
            body = await _read(scope, receive, limits)
            if body is None:
                return
            await _check_depth(body, limits.depth)
        except ApiError as refusal:
            await response_of(refusal)(scope, receive, send)
            return
        scope.setdefault("state", {})["limits"] = limits
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)


async def _read(scope: Scope, receive: Receive, limits: RequestLimits) -> bytes | None:
    """The whole body; None if the client left.

    Raises:
        ApiError: it is too large, or does not come in time.
    """
    told = dict(scope["headers"]).get(b"content-length", b"0")
    if told.isdigit() and int(told) > limits.body_bytes:
        raise _too_large(limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limits.body_bytes:
                    raise _too_large(limits)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(
            f"the body did not arrive within {limits.body_seconds:g} s", status=408, code="body_timeout"
        ) from None


async def _check_depth(body: bytes, limit: int) -> None:
    """Refuse JSON that is nested too deeply.

    Raises:
        ApiError: it is.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    # A long body would hold up every other request.
    deep = await asyncio.to_thread(is_deeper, body, limit) if len(body) > _LONG_BYTES else is_deeper(body, limit)
    if deep:
        raise ApiError(f"the body nests lists and objects more than {limit} deep", code="too_deep")


def is_deeper(body: bytes, limit: int) -> bool:
    """Whether JSON has more than ``limit`` lists and objects within one another."""
    depth = 0
    for match in _STRUCTURE.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def _too_large(limits: RequestLimits) -> ApiError:
    return ApiError(
        f"the body is larger than the {limits.body_bytes} bytes that this server takes",
        status=413,
        code="body_too_large",
    )
