"""vLLM's own chat endpoints, for VAETKI's answers: ``--reasoning-parser vaetki --tool-call-parser vaetki``.

They serve those who talk to vLLM without our gateway, which asks for tokens and reads answers itself. Leave them out
of a vLLM that stands behind it: with a reasoning parser, vLLM holds grammars back until it has seen ``</think>``.
"""

from typing import Any

from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

from trillion_model.vaetki import chat_format


class VaetkiReasoningParser(DeepSeekR1ReasoningParser):
    """Reasoning between think tags, the first of which the prompt may have written.

    With thinking off or with tools the template writes an empty block, and the answer begins at once. vLLM looks for
    that in the prompt when an answer is streamed; one that comes whole is read without its prompt.
    """

    def __init__(self, tokenizer: Any, *args: Any, **options: Any) -> None:
        super().__init__(tokenizer, *args, **options)
        asked = options.get("chat_template_kwargs") or {}
        switches = [asked[name] for name in ("enable_thinking", "thinking") if asked.get(name) is not None]
        self._thinks = switches[0] if switches else True

    @property
    def start_token(self) -> str:
        """What opens reasoning."""
        return chat_format.THINK_START

    @property
    def end_token(self) -> str:
        """What ends it."""
        return chat_format.THINK_END

    def adjust_request(self, request: Any) -> Any:
        """Keep the tags in an answer's text where they are special tokens."""
        request.skip_special_tokens = False
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Reasoning and answer of an answer that comes whole."""
        if request.tools or not self._thinks:
            return None, model_output
        return super().extract_reasoning(model_output, request)


class VaetkiToolParser(Hermes2ProToolParser):
    """A JSON object between tags for each call, which is how Hermes models write them too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        tags = chat_format.TOOL_CALL_START, chat_format.TOOL_CALL_END
        assert (self.tool_call_start_token, self.tool_call_end_token) == tags
