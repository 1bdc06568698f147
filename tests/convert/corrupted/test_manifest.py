"""Files are not those that the manifest lists."""

import pytest

from support.corruptions import content, gone, json_file, text
from support.refused import Row, assert_refused, rows
from trillion_convert.manifest import MANIFEST

TABLE = {
    "a number that was changed": Row(
        "whole",
        content(lambda old: old[:-1] + bytes([old[-1] ^ 1])),
        r"model\.safetensors has the digest",
        commands=False,
    ),
    "a card that was changed": Row(
        "whole", text("README.md", ""), r"README\.md has 0 bytes, but manifest\.json says", commands=False
    ),
    "a listed file that is missing": Row(
        "whole", gone("README.md"), r"README\.md is missing, but manifest\.json lists it", commands=False
    ),
    "a manifest that leaves the directory": Row(
        "whole",
        json_file(MANIFEST, lambda m: m["files"].update({"../x": m["files"]["README.md"]})),
        r"manifest\.json lists '\.\./x'",
        commands=False,
    ),
    "a manifest that is no JSON": Row(
        "whole", text(MANIFEST, "{"), r"manifest\.json is no manifest of ours", commands=False
    ),
}


@pytest.mark.parametrize(("row", "turn"), rows(TABLE))
def test_refused(row, turn, good, tmp_path):
    assert_refused(row, turn, good, tmp_path)
