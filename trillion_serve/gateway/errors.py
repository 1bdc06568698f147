"""Errors in the shape that OpenAI clients read: ``{"error": {"message", "type", "param", "code"}}``."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from trillion_model.errors import TrillionError
from trillion_serve.errors import (
    EngineDeadError,
    EngineUnavailableError,
    OverloadedError,
    RenderError,
    RequestRefusedError,
    ServeError,
)

logger = logging.getLogger(__name__)

_TYPES = {400: "invalid_request_error", 404: "not_found_error", 405: "invalid_request_error"}


class ApiError(ServeError):
    """What a client is told.

    Args:
        message: what was wrong, and what was expected.
        status: HTTP status.
        code: a word for programs.
        param: the field that is at fault.
    """

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def api_error(error: Exception) -> ApiError:
    """The error to tell a client for one of ours; anything else is an internal error, without details."""
    match error:
        case ApiError():
            return error
        case RenderError():
            return ApiError(str(error), code="invalid_messages", param="messages")
        case RequestRefusedError():
            return ApiError(str(error), code="request_refused")
        case OverloadedError():
            return ApiError(str(error), status=429, code="overloaded")
        case EngineDeadError():
            return ApiError(str(error), status=503, code="engine_dead")
        case EngineUnavailableError():
            return ApiError(str(error), status=503, code="engine_unavailable")
        case TrillionError():
            return ApiError(str(error), status=500, code="engine_error")
    return ApiError("the server failed on this request; its log says why", status=500, code="internal_error")


def install(app: FastAPI) -> None:
    """Make every error of the application leave in this shape."""
    app.add_exception_handler(TrillionError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_error)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    told = api_error(error)
    if told.status >= 500:
        logger.error("%s %s: %s", request.method, request.url.path, error)
    headers = {"Retry-After": str(math.ceil(error.retry_after))} if isinstance(error, OverloadedError) else None
    return JSONResponse(told.body(), told.status, headers)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(message, status=error.status_code).body(), error.status_code, error.headers)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        told = ApiError(f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    else:
        param = _path(first["loc"][1:])
        message = f"{param}: {first['msg']}" if param else first["msg"]
        code = first["type"] if first["type"] in ("unsupported_field", "contradiction") else "invalid_value"
        told = ApiError(message, code=code, param=param)
    return JSONResponse(told.body(), told.status)


def _path(location: Sequence[int | str]) -> str | None:
    """``messages[0].content`` for the place that pydantic names, without the branch of a union it tried."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int", "float", "bool"):
            path += f".{step}" if path else step
    return path or None
