"""Imports point one way, and a light import stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {
    "trillion_model": ROOT / "model" / "trillion_model",
    "trillion_convert": ROOT / "convert" / "trillion_convert",
    "trillion_serve": ROOT / "trillion_serve",
    "trillion_training": ROOT / "training" / "trillion_training",
}
MAY_IMPORT = {
    "trillion_model": set(),
    "trillion_convert": {"trillion_model"},
    "trillion_serve": {"trillion_model"},
    "trillion_training": {"trillion_model", "trillion_convert", "trillion_serve"},
}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", HOMES)
def test_packages_import_only_what_lies_below_them(package):
    sources = list(HOMES[package].rglob("*.py"))
    assert sources
    for path in sources:
        ours = imported_packages(path) & set(HOMES) - {package}
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours}"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import trillion_model, trillion_model.presets, trillion_model.vaetki.chat_format", ("torch", "transformers")),
        ("import trillion_model; trillion_model.register()", ("vllm", "sglang", "trl")),
        ("import trillion_serve.gateway, trillion_serve.chat, trillion_serve.engines", ("torch", "vllm", "trl")),
        ("import trillion_serve.cli.main", ("torch", "transformers", "vllm")),
        ("import trillion_serve.plugins.vllm", ("torch", "transformers", "vllm")),
        ("import trillion_convert.cli", ("torch", "transformers", "vllm")),
        ("import trillion_training.cli", ("torch", "transformers", "vllm")),
    ],
)
def test_a_light_import_stays_light(statement, heavy):
    check = f"import sys; {statement}; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"
