"""Refuses prompts with tokens that the model does not know: SGLang 0.5.23 does not look, and the whole server ends."""

from collections.abc import Sequence
from typing import Any

from trillion_model.configuration import FamilyConfig

HOOKED = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"


def check(manager: Any, request: Any, input_ids: Sequence[int] | None) -> None:
    """Check a prompt's token ids; runs before SGLang checks its length.

    Raises:
        ValueError: one is beyond the vocabulary, which SGLang answers with a 400.
    """
    if not input_ids or not isinstance(manager.model_config.hf_text_config, FamilyConfig):
        return
    most = manager.model_config.vocab_size - 1
    for token in (min(input_ids), max(input_ids)):
        if not 0 <= token <= most:
            raise ValueError(f"token id {token} is out of vocabulary: the model knows 0 to {most}")
