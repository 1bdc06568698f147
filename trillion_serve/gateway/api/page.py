"""The chat page: ``/`` and the files it asks for under ``/page/``, read once from the package.

The page may load nothing but these files and talk to nobody but this server: its policy says so, and so nothing
that a model writes can make it do otherwise.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, HTTPException, Request, Response

_INDEX = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept, but asked about every time: an upgraded server never runs an old script on a new page.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    """A file of the page. The tag is of its content, so that every replica gives the same one."""

    content: bytes
    media_type: str
    tag: str

    def response(self, request: Request) -> Response:
        """The file, or 304 for a client that has it."""
        headers = {**_HEADERS, "ETag": self.tag}
        if self._is_known(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)

    def _is_known(self, if_none_match: str) -> bool:
        tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        return bool(tags & {self.tag, "*"})


def router() -> APIRouter:
    """Routes of the page. They need no key: the page asks for one when the API wants it."""
    files = _read()
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        """The page."""
        return files[_INDEX].response(request)

    @routes.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def asset(name: str, request: Request) -> Response:
        """A script, style or image of the page."""
        if name not in files:
            raise HTTPException(404, "the chat page has no such file")
        return files[name].response(request)

    return routes


def _read() -> dict[str, _File]:
    """All files of the page, by name."""
    files = {}
    for path in resources.files("trillion_serve.gateway").joinpath("page").iterdir():
        suffix = path.name[path.name.rfind(".") :]
        if suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.name] = _File(content, _MEDIA_TYPES[suffix], tag)
    return files
