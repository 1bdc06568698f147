"""VAETKI: mixture of experts with multi-head latent attention, five local layers to one global.

Source: VAETKI report, sections 2.1 and 2.2. The classes are resolved on first use, so that
``trillion_model.vaetki.chat_format`` can be imported without torch.
"""

from typing import TYPE_CHECKING

from trillion_model.lazy import lazy_names

if TYPE_CHECKING:
    from trillion_model.vaetki.configuration_vaetki import VaetkiConfig
    from trillion_model.vaetki.modeling_vaetki import VaetkiForCausalLM, VaetkiModel

__all__ = ["VaetkiConfig", "VaetkiForCausalLM", "VaetkiModel"]

__getattr__ = lazy_names(
    __name__,
    {
        "VaetkiConfig": "configuration_vaetki",
        "VaetkiForCausalLM": "modeling_vaetki",
        "VaetkiModel": "modeling_vaetki",
    },
)
