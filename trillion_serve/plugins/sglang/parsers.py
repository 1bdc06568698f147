"""SGLang's own chat endpoints, for VAETKI's answers: ``--reasoning-parser vaetki --tool-call-parser vaetki``.

They serve those who talk to SGLang without our gateway, which asks for tokens and reads answers itself.
"""

from typing import Any

from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.function_call.hermes_detector import HermesDetector
from sglang.srt.parser.reasoning_parser import BaseReasoningFormatDetector, ReasoningParser

from trillion_model.vaetki import chat_format

NAME = "vaetki"

_TOOL_SCHEMA = "sglang.srt.function_call.utils._get_tool_schema"
_REASONS = "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._get_reasoning_from_request"


class VaetkiReasoningDetector(BaseReasoningFormatDetector):
    """Reasoning between think tags, the first of which the prompt may have written.

    With tools the template writes an empty block, and the answer begins at once.
    """

    def __init__(
        self,
        stream_reasoning: bool = True,
        force_reasoning: bool = False,
        tool_call_parser_active: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            chat_format.THINK_START,
            chat_format.THINK_END,
            force_reasoning=force_reasoning and not tool_call_parser_active,
            stream_reasoning=stream_reasoning,
            tool_start_token=chat_format.TOOL_CALL_START,
            thinks_internally=True,
            reasoning_default="enable_thinking",
            **options,
        )


class VaetkiToolDetector(HermesDetector):
    """A JSON object between tags for each call, which is how Hermes models write them too."""

    def __init__(self) -> None:
        super().__init__()
        assert (self.bot_token, self.eot_token) == (chat_format.TOOL_CALL_START, chat_format.TOOL_CALL_END)

    def supports_structural_tag(self) -> bool:
        """No: with llguidance such a tag lets any text pass. Calls that must come are asked for as a JSON array."""
        return False


def register() -> None:
    """Make both known to SGLang, its command line included."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    ReasoningParser.DetectorMap[NAME] = VaetkiReasoningDetector
    FunctionCallParser.ToolCallParserEnum[NAME] = VaetkiToolDetector
    HookRegistry.register(_TOOL_SCHEMA, close, HookType.AFTER)
    HookRegistry.register(_REASONS, answer_at_once, HookType.AFTER)


def close(schema: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The schema of a call that must come, as an object of its two fields: SGLang leaves room for anything else."""
    return schema | {"type": "object", "additionalProperties": False}


def answer_at_once(reasons: bool, endpoint: Any, request: Any) -> bool:
    """Whether an answer opens with reasoning: not with tools.

    SGLang goes by the template's switch for thinking alone. A grammar for calls that must come would wait for the end
    of a reasoning that never was, and bind nothing.
    """
    offered = request.tool_choice != "none" and endpoint._effective_tools(request)
    return reasons and not (endpoint.reasoning_parser == NAME and offered)
