"""Trillion-7B's chat format: its special tokens, each named once.

The Trillion 7B report does not print its template (section 4 follows the Tulu 3 recipe), so this one is ours, in the
ChatML form that most engines and datasets know: ``<|im_start|>role\\ncontent<|im_end|>\\n``, and ``<|im_end|>`` ends an
answer. A released checkpoint's own template wins over it. The model does not think aloud. Tool calls are JSON between
tags, results come back in a user turn.
"""

from pathlib import Path

BOS = "<|begin_of_text|>"
EOS = "<|im_end|>"
TURN_START = "<|im_start|>"
TOOL_CALL_START = "<tool_call>"
TOOL_CALL_END = "</tool_call>"
TOOL_RESPONSE_START = "<tool_response>"
TOOL_RESPONSE_END = "</tool_response>"
PAD = "<|pad|>"

SPECIAL_TOKENS = (
    PAD,
    BOS,
    EOS,
    TURN_START,
    TOOL_CALL_START,
    TOOL_CALL_END,
    TOOL_RESPONSE_START,
    TOOL_RESPONSE_END,
)
"""Control symbols of a tokenizer that we train, in the order of their ids."""


def chat_template() -> str:
    """The Jinja chat template that our exports carry; a checkpoint's own template wins over it."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
