"""VAETKI: mixture of experts with multi-head latent attention, five local layers to one global.

Source: VAETKI report, sections 2.1 and 2.2. The classes are resolved on first use, so that
``trillion_model.vaetki.chat_format`` can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trillion_model.vaetki.configuration_vaetki import VaetkiConfig
    from trillion_model.vaetki.modeling_vaetki import VaetkiForCausalLM, VaetkiModel

_HOMES = {
    "VaetkiConfig": "configuration_vaetki",
    "VaetkiForCausalLM": "modeling_vaetki",
    "VaetkiModel": "modeling_vaetki",
}

__all__ = ["VaetkiConfig", "VaetkiForCausalLM", "VaetkiModel"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
