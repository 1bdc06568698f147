"""Gravity-16B: DeepSeek-V3's architecture under another name, and Transformers' own classes for it.

Source: the model card of Gravity-16B-A3B-Base. The classes are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trillion_model.gravity.configuration_gravity import GravityMoEConfig
    from trillion_model.gravity.modeling_gravity import GravityMoEForCausalLM, GravityMoEModel

_HOMES = {
    "GravityMoEConfig": "configuration_gravity",
    "GravityMoEForCausalLM": "modeling_gravity",
    "GravityMoEModel": "modeling_gravity",
}

__all__ = ["GravityMoEConfig", "GravityMoEForCausalLM", "GravityMoEModel"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
