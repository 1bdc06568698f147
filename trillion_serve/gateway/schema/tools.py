"""Tools in a chat request: what the model may call, and whether it must."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from trillion_serve.chat.structure import call_grammar
from trillion_serve.chat.tools import ToolUse
from trillion_serve.gateway.schema.common import RequestModel
from trillion_serve.gateway.schema.grammar import FunctionName, JsonSchema
from trillion_serve.gateway.schema.grammar_check import refusal_of

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The parameters of a function that names none."""


class Function(RequestModel):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


def _only_functions(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError(
            "unsupported_field", "only functions are taken as tools; this is {kind}", {"kind": kind[:64]}
        )
    return kind


class Tool(RequestModel):
    """A tool that the model may use."""

    type: Annotated[Literal["function"], BeforeValidator(_only_functions)]
    function: Function


class NamedFunction(RequestModel):
    """A function by its name."""

    name: FunctionName


class NamedTool(RequestModel):
    """A tool by its function's name."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(RequestModel):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(RequestModel):
    """The choice that leaves the model some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _form(choice: Any) -> str:
    """Which of the API's forms a choice has."""
    if isinstance(choice, str):
        return "a word"
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return "some of the tools" if kind == "allowed_tools" else "one function"


# The names of the forms are no identifiers, so that they do not show in the path of an error.
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("a word")]
    | Annotated[NamedTool, Tag("one function")]
    | Annotated[AllowedToolsChoice, Tag("some of the tools")],
    Discriminator(_form),
]


class ToolFields(RequestModel):
    """The fields about tools."""

    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model is told of."""
        if self.tool_choice == "none":
            return []
        if isinstance(self.tool_choice, AllowedToolsChoice):
            allowed = {tool.function.name for tool in self.tool_choice.allowed_tools.tools}
            return [tool for tool in self.tools or () if tool.function.name in allowed]
        return list(self.tools or ())

    @property
    def tool_use(self) -> ToolUse | None:
        """What the answer may call and must call; None without tools."""
        choice, tools = self.tool_choice, self.offered_tools
        if not tools:
            return None
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
        mode = choice.allowed_tools.mode if isinstance(choice, AllowedToolsChoice) else choice
        return ToolUse(
            parameters={tool.function.name: _parameters(tool) for tool in tools},
            required=mode == "required" or isinstance(choice, NamedTool),
            parallel=self.parallel_tool_calls is not False and not isinstance(choice, NamedTool),
        )

    @model_validator(mode="after")
    def _tool_fields_agree(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise _error(f"tools[{index}].function.name", "two functions are called {name}", name=name)
        if self.tool_choice not in (None, "none") and not names:
            raise _error("tool_choice", "tool_choice needs tools to choose from")
        for name in _chosen(self.tool_choice):
            if name not in names:
                raise _error("tool_choice", "no function called {name} is among the tools", name=name)
        self._check_held_calls()
        return self

    def _is_held(self, tool: Tool) -> bool:
        """Whether a call of a tool that may be called has to fit its parameters."""
        return self.tool_use is not None and self.tool_use.required

    def _check_held_calls(self) -> None:
        """Refuse parameters that a call cannot be held to, where it has to be."""
        use = self.tool_use
        for index, tool in enumerate(self.tools or ()):
            if use is not None and tool.function.name in use.parameters and self._is_held(tool):
                problem = refusal_of(call_grammar({tool.function.name: _parameters(tool)}))
                if problem is not None:
                    raise _error(
                        f"tools[{index}].function.parameters",
                        "a call of {name} cannot be held to its parameters ({problem}); "
                        "leave tool_choice at auto, and strict away",
                        name=tool.function.name,
                        problem=" ".join(problem.split()),
                    )


def _parameters(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters
    return NO_PARAMETERS if not parameters else {"type": "object", **parameters}


def _chosen(choice: str | NamedTool | AllowedToolsChoice | None) -> Sequence[str]:
    """The functions that a choice names."""
    match choice:
        case NamedTool():
            return [choice.function.name]
        case AllowedToolsChoice():
            return [tool.function.name for tool in choice.allowed_tools.tools]
    return []


def _error(param: str, message: str, **values: str) -> PydanticCustomError:
    """An error that names its field itself, as pydantic gives none to a model's own validators."""
    return PydanticCustomError("invalid_tools", message, {"param": param, **values})
