"""The form of an answer in every spelling that clients use, read into one grammar."""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from trillion_serve.engines.protocol import Grammar
from trillion_serve.gateway.schema.common import RequestModel, Unsupported
from trillion_serve.gateway.schema.grammar import EnforceableSchema, FunctionName, enforceable, parsed, schema_grammar

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_METACHARACTERS = str.maketrans({character: f"\\{character}" for character in r"\.+*?()|[]{}^$"})


def _regex(text: str) -> str:
    return enforceable(Grammar("regex", text)).value


def _ebnf(text: str) -> str:
    return enforceable(Grammar("ebnf", text)).value


def _choices(texts: list[str]) -> list[str]:
    enforceable(_one_of(texts))
    return texts


def _one_of(texts: list[str]) -> Grammar:
    """A grammar of these texts to the letter."""
    return Grammar("regex", "|".join(f"({text.translate(_METACHARACTERS)})" for text in texts))


Regex = Annotated[str, AfterValidator(_regex)]
"""A regular expression that the whole answer matches."""
Ebnf = Annotated[str, AfterValidator(_ebnf)]
"""A grammar in GBNF or Lark notation."""
SchemaOrText = Annotated[EnforceableSchema, BeforeValidator(parsed)]
"""A JSON Schema, as an object or as JSON text."""
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), AfterValidator(_choices)]
"""Texts one of which is the answer."""


class NamedSchema(RequestModel):
    """A schema as the OpenAI API wraps it. It is enforced whatever ``strict`` says."""

    name: FunctionName
    description: str | None = None
    schema_: EnforceableSchema | None = Field(None, alias="schema")
    strict: bool | None = None


class Text(RequestModel):
    """Any text."""

    type: Literal["text"]


class JsonObject(RequestModel):
    """Any JSON object, or one of a schema."""

    type: Literal["json_object"]
    schema_: EnforceableSchema | None = Field(None, alias="schema")


class JsonSchemaFormat(RequestModel):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


def _format(value: Any) -> str:
    """Which form a response format has."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"json_object": "any object", "json_schema": "a schema", "text": "any text"}.get(str(kind), "another form")


class UnknownFormat(RequestModel):
    """Only here to refuse what is none of the others."""

    type: Literal["text", "json_object", "json_schema"]


# The names of the forms are no identifiers, so that they do not show in the path of an error.
ResponseFormat = Annotated[
    Annotated[Text, Tag("any text")]
    | Annotated[JsonObject, Tag("any object")]
    | Annotated[JsonSchemaFormat, Tag("a schema")]
    | Annotated[UnknownFormat, Tag("another form")],
    Discriminator(_format),
]


class StructuredOutputs(RequestModel):
    """vLLM's object: one of its fields."""

    json_: SchemaOrText | None = Field(None, alias="json")
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: Ebnf | None = None
    json_object: bool | None = None

    structural_tag: Unsupported = None
    whitespace_pattern: Unsupported = None
    disable_any_whitespace: Unsupported = None
    disable_additional_properties: Unsupported = None


class StructureFields(RequestModel):
    """The fields about the form of an answer. It binds after the reasoning."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: Ebnf | None = None
    regex: Regex | None = None
    ebnf: Ebnf | None = None
    json_schema: SchemaOrText | None = None

    @property
    def grammar(self) -> Grammar | None:
        """What the content, or what is no call in it, must spell; None for any text."""
        return next(iter(self._forms.values()), None)

    @property
    def form_field(self) -> str | None:
        """The field that says what form the content has."""
        return next(iter(self._forms), None)

    @cached_property
    def _forms(self) -> dict[str, Grammar]:
        return dict(self._grammars())

    @model_validator(mode="after")
    def _one_form_is_asked_for(self) -> Self:
        if len(self._forms) > 1:
            one, other, *_ = self._forms
            raise PydanticCustomError(
                "contradiction",
                "{one} and {other} both say what form the answer has; leave one of them out",
                {"one": one, "other": other, "param": other},
            )
        return self

    def _grammars(self) -> Iterator[tuple[str, Grammar]]:
        """Every field that is given, and what it asks for."""
        match self.response_format:
            case JsonObject(schema_=schema):
                yield "response_format", schema_grammar(schema or _ANY_OBJECT)
            case JsonSchemaFormat(json_schema=named):
                yield "response_format", schema_grammar(named.schema_ or _ANY_OBJECT)
        vllm = self.structured_outputs or StructuredOutputs(json=None)
        if vllm.json_object:
            yield "structured_outputs.json_object", schema_grammar(_ANY_OBJECT)
        schemas = {
            "structured_outputs.json": vllm.json_,
            "guided_json": self.guided_json,
            "json_schema": self.json_schema,
        }
        regexes = {
            "structured_outputs.regex": vllm.regex,
            "guided_regex": self.guided_regex,
            "regex": self.regex,
        }
        choices = {"structured_outputs.choice": vllm.choice, "guided_choice": self.guided_choice}
        grammars = {
            "structured_outputs.grammar": vllm.grammar,
            "guided_grammar": self.guided_grammar,
            "ebnf": self.ebnf,
        }
        yield from ((field, schema_grammar(schema)) for field, schema in schemas.items() if schema is not None)
        yield from ((field, Grammar("regex", regex)) for field, regex in regexes.items() if regex is not None)
        yield from ((field, _one_of(texts)) for field, texts in choices.items() if texts is not None)
        yield from ((field, Grammar("ebnf", text)) for field, text in grammars.items() if text is not None)
