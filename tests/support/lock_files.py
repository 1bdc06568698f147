"""What the lock files pin, and what the packages in them need."""

import tomllib
from collections.abc import Iterable
from importlib.metadata import requires, version

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from support.compose import ROOT


def pinned(name: str) -> dict[NormalizedName, str]:
    """The versions in ``requirements/NAME.txt``, in the file's order.

    Raises:
        ValueError: a line pins no exact version, or a package is there twice.
    """
    versions: dict[NormalizedName, str] = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        package, pin, exact = line.partition("==")
        if not pin or not exact or canonicalize_name(package) in versions:
            raise ValueError(f"requirements/{name}.txt: {line}")
        versions[canonicalize_name(package)] = exact
    return versions


def core_dependencies() -> list[str]:
    """What our distribution needs without any extra."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]


def closure(requirements: Iterable[str]) -> dict[NormalizedName, str]:
    """The packages that these need, and that those need, in the versions that are installed here."""
    found: dict[NormalizedName, str] = {}
    seen: set[tuple[NormalizedName, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        found[name] = version(wanted.name)
        needs = map(Requirement, requires(wanted.name) or ())
        waiting += [need for need in needs if _applies(need, {"", *wanted.extras})]
    return found


def _applies(need: Requirement, extras: set[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
