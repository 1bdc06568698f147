"""Trillion-7B: dense, with norms before and after each sublayer, trained to predict two tokens at once.

Source: Trillion 7B report, section 3.4. The released Trillion-7B-preview is of plain Llama layout and no member of this
family. The classes are resolved on first use, so that ``trillion_model.trillion.chat_format`` can be imported without
torch.
"""

from typing import TYPE_CHECKING

from trillion_model.lazy import lazy_names

if TYPE_CHECKING:
    from trillion_model.trillion.configuration_trillion import Trillion7BConfig
    from trillion_model.trillion.modeling_trillion import Trillion7BForCausalLM, Trillion7BModel

__all__ = ["Trillion7BConfig", "Trillion7BForCausalLM", "Trillion7BModel"]

__getattr__ = lazy_names(
    __name__,
    {
        "Trillion7BConfig": "configuration_trillion",
        "Trillion7BForCausalLM": "modeling_trillion",
        "Trillion7BModel": "modeling_trillion",
    },
)
