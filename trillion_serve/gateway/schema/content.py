"""What the content of an answer may be: tool calls, or a text of a given form."""

from typing import Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from trillion_serve.chat.answer import Segment
from trillion_serve.chat.structure import content_plan
from trillion_serve.gateway.schema.structure import StructureFields
from trillion_serve.gateway.schema.tools import ToolFields


class ContentFields(ToolFields, StructureFields):
    """The fields about tools and about the form of an answer, which exclude each other."""

    @property
    def content_plan(self) -> tuple[Segment, ...]:
        """The parts that the answer's content is made of."""
        return content_plan(self.grammar, self.tool_use)

    @model_validator(mode="after")
    def _tools_or_a_form(self) -> Self:
        field = self.form_field
        if field is not None and self.tool_use is not None:
            raise PydanticCustomError(
                "contradiction",
                "{field} says what form the answer has, and tools let it be a call; "
                "leave one of them out, or set tool_choice to none",
                {"field": field, "param": field},
            )
        return self
