"""Gravity-16B: DeepSeek-V3's architecture under another name, and Transformers' own classes for it.

Source: the model card of Gravity-16B-A3B-Base. The classes are resolved on first use.
"""

from typing import TYPE_CHECKING

from trillion_model.lazy import lazy_names

if TYPE_CHECKING:
    from trillion_model.gravity.configuration_gravity import GravityMoEConfig
    from trillion_model.gravity.modeling_gravity import GravityMoEForCausalLM, GravityMoEModel

__all__ = ["GravityMoEConfig", "GravityMoEForCausalLM", "GravityMoEModel"]

__getattr__ = lazy_names(
    __name__,
    {
        "GravityMoEConfig": "configuration_gravity",
        "GravityMoEForCausalLM": "modeling_gravity",
        "GravityMoEModel": "modeling_gravity",
    },
)
