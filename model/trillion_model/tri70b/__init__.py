"""Tri-70B: grouped-query attention, three layers with RoPE and a window to one that sees everything without positions.

Source: the model card of Tri-70B-preview-SFT and its published configuration. Its classes are called ``Trillion...``,
because published files name them so, and are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trillion_model.tri70b.configuration_tri70b import TrillionConfig
    from trillion_model.tri70b.modeling_tri70b import TrillionForCausalLM, TrillionModel

_HOMES = {
    "TrillionConfig": "configuration_tri70b",
    "TrillionForCausalLM": "modeling_tri70b",
    "TrillionModel": "modeling_tri70b",
}

__all__ = ["TrillionConfig", "TrillionForCausalLM", "TrillionModel"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
