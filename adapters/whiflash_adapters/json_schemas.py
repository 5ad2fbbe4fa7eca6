"""The JSON schema of whatever a caller may give for one: a class, a schema, a tool.

LangChain's conversion is made for functions: it writes every definition where it is used, so that
of a type which holds itself nothing is left, it knows no schemas but those of objects with named
properties, and a Decimal is any text to it. It is used where that does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeGuard

from langchain_core.tools import BaseTool, create_schema_from_function
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.json_schema import dereference_refs
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import is_typeddict

from whiflash_adapters.typed_dicts import as_model
from whiflash_engine.errors import ConfigError

Schema = dict[str, Any] | type
ToolLike = Schema | Callable[..., Any] | BaseTool


def json_schema(given: Schema) -> dict[str, Any]:
    """given: a Pydantic class (v2 or v1), a TypedDict or dataclass, a JSON schema, which is taken
    as it is, or a tool of OpenAI, Anthropic or Bedrock, whose arguments it then is. ConfigError
    for anything else: LangChain would take it for a function, and describe its arguments."""
    if _is_schema(given):
        return given
    if isinstance(given, type) and is_typeddict(given):
        given = as_model(given)
    if not isinstance(given, dict) and not _is_class_of_fields(given):
        why = (
            "must be a Pydantic class, a TypedDict, a dataclass or a JSON schema; "
            "a Pydantic RootModel makes a class of any other type"
        )
        raise ConfigError("schema", given, why)
    if _is_model(given) and _langchain_loses(given):
        return _of_model(given)
    return convert_to_json_schema(given)


def unwrapped(given: dict[str, Any], strict: bool | None) -> tuple[dict[str, Any], bool | None]:
    """The schema inside of OpenAI's {"name", "schema", "strict"}, titled with the name, and its
    `strict` unless the call has one of its own. Any other dict stays what it is."""
    inner = given.get("schema")
    if "name" not in given or not isinstance(inner, Mapping):
        return given, strict
    return {"title": given["name"], **inner}, given.get("strict") if strict is None else strict


def as_tool(given: ToolLike) -> dict[str, Any]:
    """A tool as OpenAI writes it, with all of its arguments' schema. What LangChain injects into
    a call is none of its arguments."""
    if isinstance(given, type) and is_typeddict(given):
        given = as_model(given)
    spec = convert_to_openai_tool(given)
    source = _arguments(given)
    schema = source.model_json_schema() if _is_model(source) else source
    if "function" not in spec or not _is_schema(schema):
        return spec
    loses = _langchain_loses(source) if _is_model(source) else _recurs(schema)
    if "properties" in _rooted(schema) and not loses:
        return spec  # in the words of LangChain, as prompts have always had them
    full = _of_model(source) if _is_model(source) else _rooted(schema)
    arguments = {k: v for k, v in full.items() if k not in ("title", "description")}
    return {**spec, "function": {**spec["function"], "parameters": arguments}}


def _arguments(tool: ToolLike) -> Schema | BaseTool:
    """A class or schema of a tool's arguments, or the tool if it is one, or has no other."""
    if isinstance(tool, BaseTool):
        return tool.tool_call_schema if tool.args_schema else tool
    if isinstance(tool, dict | type):
        return tool
    # as LangChain reads functions, but before it writes out the definitions
    return create_schema_from_function(
        tool.__name__, tool, filter_args=(), parse_docstring=True,
        error_on_invalid_docstring=False, include_injected=False,
    )  # fmt: skip


class _Exact(GenerateJsonSchema):
    """With a Decimal that no word is one of, and no number out of its bounds."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        number: JsonSchemaValue = super().decimal_schema(schema)["anyOf"][0]
        if number != {"type": "number"}:
            return number  # a pattern keeps to no bounds
        # as a string too: a number loses digits beyond the 17th once it is a float
        return {"anyOf": [number, {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}]}


class _Untitled(_Exact):
    """Without titles that only repeat a field's name: they would cost tokens of the prompt."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def _langchain_loses(model: type[BaseModel]) -> bool:
    """Whether LangChain's conversion leaves out what a grammar can keep to."""
    schema = model.model_json_schema()
    return _recurs(schema) or schema != model.model_json_schema(schema_generator=_Exact)


def _of_model(model: type[BaseModel]) -> dict[str, Any]:
    """With its definitions where they are used, as LangChain has them, unless one holds itself."""
    schema = _rooted(model.model_json_schema(schema_generator=_Untitled))
    if not _recurs(schema):
        schema = {k: v for k, v in dereference_refs(schema).items() if k != "$defs"}
    head = [key for key in ("title", "description") if key in schema]
    return {key: schema[key] for key in (*head, *schema)}


def _is_class_of_fields(given: object) -> bool:
    return isinstance(given, type) and (is_basemodel_subclass(given) or is_dataclass(given))


def _is_model(given: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(given, type) and issubclass(given, BaseModel)


def _is_schema(given: object) -> TypeGuard[dict[str, Any]]:
    """Whether it is a JSON schema, and not a tool in one of the forms that LangChain knows."""
    if not isinstance(given, dict) or given.get("type") == "function" or "toolSpec" in given:
        return False
    return "name" not in given or "properties" in given


def _definitions(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a schema may refer to, by the reference."""
    kinds = ("$defs", "definitions")
    inner = {f"#/{k}/{name}": one for k in kinds for name, one in schema.get(k, {}).items()}
    return {"#": schema, **inner}


def _rooted(schema: dict[str, Any]) -> dict[str, Any]:
    """With its properties at the top, where prompts and formats look for them, also if it is
    nothing but a reference to one of its definitions (as that of a type which holds itself)."""
    target = _definitions(schema).get(schema.get("$ref", ""), {})
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _recurs(schema: Mapping[str, Any]) -> bool:
    """Whether one of its definitions holds itself, perhaps inside of others."""
    needs = {name: set(_references(one)) for name, one in _definitions(schema).items()}
    while ready := [name for name, needed in needs.items() if not needed & needs.keys()]:
        for name in ready:
            del needs[name]
    return bool(needs)


def _references(node: object) -> Iterator[str]:
    inner: Iterable[object] = node if isinstance(node, list) else ()
    if isinstance(node, Mapping):
        inner = node.values()
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
    for one in inner:
        yield from _references(one)
