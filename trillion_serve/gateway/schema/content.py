"""What the content of an answer may be: tool calls, or a text of a given form."""

from trillion_serve.gateway.schema.structure import StructureFields
from trillion_serve.gateway.schema.tools import Tool, ToolFields


class ContentFields(ToolFields, StructureFields):
    """The fields about tools and about the form of an answer. With both, an answer is calls or has the form."""

    def _is_held(self, tool: Tool) -> bool:
        """A form makes an answer follow a grammar, and so the calls beside it can be held to what is strict."""
        return super()._is_held(tool) or (self.form_field is not None and tool.function.strict is True)
