"""VAETKI's chat format: its special tokens, each named once (VAETKI report, section 2.2).

A turn is ``<|role_start|>role<|role_end|>\\ncontent\\n``; ``<|END|>`` closes an assistant turn. An assistant
turn opens with a think block, empty when thinking is off or tools are offered.
"""

from pathlib import Path

BOS = "<|START|>"
EOS = "<|END|>"
ROLE_START = "<|role_start|>"
ROLE_END = "<|role_end|>"
THINK_START = "<think>"
THINK_END = "</think>"
TOOL_CALL_START = "<tool_call>"
TOOL_CALL_END = "</tool_call>"
TOOL_RESPONSE_START = "<tool_response>"
TOOL_RESPONSE_END = "</tool_response>"
PAD = "<|pad|>"

SPECIAL_TOKENS = (
    PAD,
    BOS,
    EOS,
    ROLE_START,
    ROLE_END,
    THINK_START,
    THINK_END,
    TOOL_CALL_START,
    TOOL_CALL_END,
    TOOL_RESPONSE_START,
    TOOL_RESPONSE_END,
)
"""Control symbols of a tokenizer that we train, in the order of their ids."""


def chat_template() -> str:
    """The Jinja chat template that our exports carry; a checkpoint's own template wins over it."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
