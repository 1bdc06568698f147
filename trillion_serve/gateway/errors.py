"""Errors in the shape that OpenAI clients read: ``{"error": {"message", "type", "param", "code"}}``."""

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
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
from trillion_serve.gateway.documents import field_path

logger = logging.getLogger(__name__)

_TYPES = {404: "not_found_error", 429: "rate_limit_error"}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered as it is."},
    "5XX": {"model": ErrorBody, "description": "The server or its engine failed."},
}
"""What every route may answer besides its own."""


class ApiError(ServeError):
    """What a client is told.

    Args:
        message: what was wrong, and what was expected.
        status: HTTP status.
        code: a word for programs.
        param: the field that is at fault.
        headers: more HTTP headers for the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        detail = ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump()


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
            retry_after = {"Retry-After": str(math.ceil(error.retry_after))}
            return ApiError(str(error), status=429, code="overloaded", headers=retry_after)
        case EngineDeadError():
            return ApiError(str(error), status=503, code="engine_dead")
        case EngineUnavailableError():
            return ApiError(str(error), status=503, code="engine_unavailable")
        case TrillionError():
            return ApiError(str(error), status=500, code="engine_error")
    return ApiError("the server failed on this request; its log says why", status=500, code="internal_error")


def response_of(error: ApiError) -> JSONResponse:
    """The response that tells a client."""
    return JSONResponse(error.body(), error.status, error.headers)


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
    return response_of(told)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return response_of(ApiError(message, status=error.status_code, code=code, headers=error.headers))


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        told = ApiError(f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    else:
        # A validator of a whole model names the field that is at fault itself, as pydantic gives it no place.
        param = first.get("ctx", {}).get("param") or _path(first["loc"][1:])
        message = f"{param}: {first['msg']}" if param else first["msg"]
        code = first["type"] if first["type"] in ("unsupported_field", "contradiction") else "invalid_value"
        told = ApiError(message, code=code, param=param)
    return JSONResponse(told.body(), told.status)


def _path(location: Sequence[int | str]) -> str | None:
    """The place that pydantic names in a request, without the branch of a union that it tried."""
    types = ("str", "int", "float", "bool")
    steps = [step for step in location if isinstance(step, int) or (step.isidentifier() and step not in types)]
    return field_path(steps) or None
