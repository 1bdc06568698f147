"""The chat page as files over HTTP; ``test_page_in_browser.py`` uses it."""

import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import httpx
import pytest

from support.running_gateway import Gateway

PAGE = resources.files("trillion_serve.gateway") / "page"
ROOT = Path(__file__).parents[3]


def ask(gateway: Gateway, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    url = gateway.url.removesuffix("/v1") + path
    return httpx.request(method, url, headers={k.replace("_", "-"): v for k, v in headers.items()}, timeout=30)


class References(HTMLParser):
    """The files that a page names, and whatever its policy would forbid."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.files += [str(names[name]) for name in ("src", "href") if name in names]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.inline.append(tag)
        self.inline += [name for name in names if name == "style" or name.startswith("on")]


def test_the_page_is_at_the_root(gateway: Gateway) -> None:
    response = ask(gateway, "/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == (PAGE / "index.html").read_bytes()


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("chat.css", "text/css; charset=utf-8"),
        ("chat.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_its_files_have_their_types(gateway: Gateway, name: str, media_type: str) -> None:
    response = ask(gateway, f"/page/{name}")
    assert response.headers["content-type"] == media_type
    assert response.content == (PAGE / name).read_bytes()


@pytest.mark.parametrize("path", ["/", "/page/chat.js"])
def test_nothing_but_this_server_may_be_loaded_or_talked_to(gateway: Gateway, path: str) -> None:
    headers = ask(gateway, path).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_names_only_files_that_are_there_and_has_no_inline_code(gateway: Gateway) -> None:
    references = References()
    references.feed(ask(gateway, "/").text)
    assert references.inline == []
    assert {ask(gateway, f"/{file}").status_code for file in references.files} == {200}


def test_scripts_import_only_files_that_are_there(gateway: Gateway) -> None:
    scripts = [path for path in PAGE.iterdir() if path.name.endswith(".js")]
    imported = {name for path in scripts for name in re.findall(r'from "(.+?)"', path.read_text(encoding="utf-8"))}
    assert imported
    assert {ask(gateway, f"/page/{name}").status_code for name in imported} == {200}


@pytest.mark.parametrize("path", ["/", "/page/chat.css"])
def test_a_browser_that_has_a_file_is_told_so(gateway: Gateway, path: str) -> None:
    first = ask(gateway, path)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = ask(gateway, path, if_none_match=known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert ask(gateway, path, if_none_match='"other"').status_code == 200


def test_head_gives_the_headers_alone(gateway: Gateway) -> None:
    response = ask(gateway, "/", "HEAD")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["etag"] == ask(gateway, "/").headers["etag"]


@pytest.mark.parametrize(
    "path", ["/page/none.js", "/page/", "/page/__init__.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py"]
)
def test_other_paths_are_not_found_in_the_words_of_the_api(gateway: Gateway, path: str) -> None:
    response = ask(gateway, path)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"


def test_the_page_is_not_part_of_the_api_document(gateway: Gateway) -> None:
    assert not {"/", "/page/{name}"} & set(ask(gateway, "/openapi.json").json()["paths"])


def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {f"trillion_serve/gateway/page/{path.name}" for path in PAGE.iterdir()} <= inside
