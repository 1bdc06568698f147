"""Keys at the door: middleware that lets nobody in without one, once there are any."""

from enum import Enum

from starlette.types import ASGIApp, Receive, Scope, Send

from trillion_serve.gateway.errors import ApiError, response_of
from trillion_serve.gateway.security.front import Front, FrontSettings
from trillion_serve.gateway.security.keys import ApiKey


class Zone(Enum):
    """Parts of the server, by who may enter."""

    OPEN = "health checks, and the chat page, which asks for a key itself"
    METRICS = "for whoever scrapes metrics"
    ADMIN = "for admin keys"
    API = "everything else"


def zone_of(path: str) -> Zone:
    """Where a path leads."""
    if path in ("/", "/health", "/ready") or path.startswith("/page/"):
        return Zone.OPEN
    if path == "/metrics":
        return Zone.METRICS
    if path == "/admin" or path.startswith("/admin/"):
        return Zone.ADMIN
    return Zone.API


class Authentication:
    """Finds out whose request it is, for everything behind it: ``scope["state"]`` gets ``key`` and ``key_name``,
    None where no key was needed.
    """

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                key = _caller(scope, self._front.settings)
            except ApiError as refusal:
                await response_of(refusal)(scope, receive, send)
                return
            state = scope.setdefault("state", {})
            state["key"], state["key_name"] = key, None if key is None else key.name
        await self._app(scope, receive, send)


def _caller(scope: Scope, settings: FrontSettings) -> ApiKey | None:
    zone = zone_of(scope["path"])
    if zone is Zone.OPEN or (zone is Zone.METRICS and settings.metrics_public):
        return None
    if zone is Zone.ADMIN:
        if not len(settings.admin_keys):
            raise ApiError("the admin API is off: this server has no admin key", status=404, code="admin_off")
        return _found(settings.admin_keys.find(_secret(scope, "an admin key")))
    if not len(settings.keys):
        return None
    secret = _secret(scope, "an API key")
    key = settings.keys.find(secret)
    if key is None and zone is Zone.METRICS:
        key = settings.admin_keys.find(secret)
    return _found(key)


def _secret(scope: Scope, wanted: str) -> str:
    """The key that a request carries."""
    headers = dict(scope["headers"])
    scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        secret = headers.get(b"x-api-key", b"").decode("latin-1")
    if not secret.strip():
        raise _unauthorized(f"{wanted} is needed here: send it as `Authorization: Bearer KEY`", "missing_api_key")
    return secret.strip()


def _found(key: ApiKey | None) -> ApiKey:
    if key is None:
        raise _unauthorized("this key is not known here", "invalid_api_key")
    return key


def _unauthorized(message: str, code: str) -> ApiError:
    return ApiError(message, status=401, code=code, headers={"WWW-Authenticate": "Bearer"})
