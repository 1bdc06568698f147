"""A route whose one argument is the JSON of its body."""

import asyncio
import json
from contextlib import suppress
from email.message import Message
from typing import Any, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.json_text import check_text
from trillion_serve.gateway.schema.grammar_check import MustWait
from trillion_serve.gateway.security.limits import RequestLimits

_BATCHES = ("messages", "input", "prompt")
_LONG_BYTES = 16 * 2**10


class JsonRoute(APIRoute):
    """Reads the body and calls ``endpoint(body, request)``, which gives a response.

    FastAPI documents such a route as it does any other. Serving it needs none of its dependencies. A body that is long,
    or has a grammar to be checked, is read in a thread, as it would hold up every other request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._body: type[BaseModel] = get_type_hints(self.endpoint)["body"]
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        _check_type(request.headers.get("content-type", ""))
        raw, limits = await request.body(), request.state.limits
        response = await self.endpoint(await self._body_of(raw, limits), request)
        await response(scope, receive, send)

    async def _body_of(self, raw: bytes, limits: RequestLimits) -> BaseModel:
        with suppress(MustWait):
            if len(raw) <= _LONG_BYTES:
                return self._read(raw, limits)
        return await asyncio.to_thread(self._read, raw, limits)

    def _read(self, raw: bytes, limits: RequestLimits) -> BaseModel:
        try:
            # Given bytes, it would take surrogates that stand alone.
            value = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ApiError(f"the body is not UTF-8: {error}", code="invalid_json") from error
        except ValueError as error:
            raise ApiError(f"the body is not JSON: {error}", code="invalid_json") from error
        if b"\\ud" in raw or b"\\uD" in raw:
            check_text(value)
        _check_batches(value, limits)
        try:
            return self._body.model_validate(value)
        except ValidationError as error:
            raise RequestValidationError(
                [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
            ) from error


def _check_type(content_type: str) -> None:
    """Refuse what is not sent as JSON: a page of another site can make a browser send anything else.

    Raises:
        ApiError: it is not.
    """
    if content_type == "application/json":
        return
    header = Message()
    header["content-type"] = content_type
    kind = header.get_content_subtype() if header.get_content_maintype() == "application" else ""
    if kind != "json" and not kind.endswith("+json"):
        told = f"as {content_type}" if content_type else "without a content type"
        raise ApiError(
            f"the body was sent {told}; send JSON with `Content-Type: application/json`",
            status=415,
            code="unsupported_media_type",
        )


def _check_batches(value: Any, limits: RequestLimits) -> None:
    """Refuse more messages or prompts than the server takes.

    Raises:
        ApiError: they are too many.
    """
    for name in _BATCHES if isinstance(value, dict) else ():
        items = value.get(name)
        is_batch = isinstance(items, list) and not (items and isinstance(items[0], int))
        if is_batch and len(items) > limits.messages:
            raise ApiError(
                f"{name} has {len(items)} items, and this server takes {limits.messages}",
                code="too_many_items",
                param=name,
            )
