"""What an engine's own server is started with so that our gateway can stand before it.

``VllmOptions`` says why grammars are enforced by llguidance, which vLLM calls "guidance".
"""

STRUCTURED_OUTPUTS = {"backend": "guidance", "disable_any_whitespace": True, "enable_in_reasoning": True}
"""vLLM's ``structured_outputs_config``. With the last, a grammar holds from the first token, whatever reasoning parser
the server has."""

Flags = dict[str, object]
"""Values by flag; True stands for a flag without one, and a dict for JSON."""

VLLM_FLAGS: Flags = {"structured-outputs-config": STRUCTURED_OUTPUTS, "enable-prompt-tokens-details": True}
"""Without the second nobody learns how many tokens of a prompt were cached."""

SGLANG_FLAGS: Flags = {"grammar-backend": "llguidance", "constrained-json-disable-any-whitespace": True}
