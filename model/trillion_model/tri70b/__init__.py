"""Tri-70B: grouped-query attention, three layers with RoPE and a window to one that sees everything without positions.

Source: the model card of Tri-70B-preview-SFT and its published configuration. Its classes are called ``Trillion...``,
because published files name them so, and are resolved on first use.
"""

from typing import TYPE_CHECKING

from trillion_model.lazy import lazy_names

if TYPE_CHECKING:
    from trillion_model.tri70b.configuration_tri70b import TrillionConfig
    from trillion_model.tri70b.modeling_tri70b import TrillionForCausalLM, TrillionModel

__all__ = ["TrillionConfig", "TrillionForCausalLM", "TrillionModel"]

__getattr__ = lazy_names(
    __name__,
    {
        "TrillionConfig": "configuration_tri70b",
        "TrillionForCausalLM": "modeling_tri70b",
        "TrillionModel": "modeling_tri70b",
    },
)
