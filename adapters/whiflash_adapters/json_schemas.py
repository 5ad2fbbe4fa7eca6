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
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError

from whiflash_adapters.exact_schemas import Exact, Untitled
from whiflash_adapters.typed_dicts import as_model, told_in_docstring
from whiflash_engine.errors import ConfigError

Schema = dict[str, Any] | type
ToolLike = Schema | Callable[..., Any] | BaseTool


def json_schema(given: Schema) -> dict[str, Any]:
    """given: a Pydantic class (v2 or v1), a TypedDict or dataclass, a JSON schema, which is taken
    as it is, or a tool of OpenAI, Anthropic or Bedrock, whose arguments it then is. ConfigError
    for anything else: LangChain would take it for a function, and describe its arguments."""
    if _is_schema(given):
        return given
    given = as_model(given)
    if not isinstance(given, dict) and not _is_class_of_fields(given):
        why = (
            "must be a Pydantic class, a TypedDict, a dataclass or a JSON schema; "
            "a Pydantic RootModel makes a class of any other type"
        )
        raise ConfigError("schema", given, why)
    if _is_dataclass(given):
        return _of_dataclass(given)
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
    if isinstance(given, dict) and "strict" in given:
        spec = as_tool({key: value for key, value in given.items() if key != "strict"})
        return _with_strict(spec, given["strict"])
    given = {"description": "", **_of_dataclass(given)} if _is_dataclass(given) else as_model(given)
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


def _with_strict(spec: dict[str, Any], strict: object) -> dict[str, Any]:
    if "function" not in spec:  # which is flat itself
        return {**spec, "strict": strict}
    return {**spec, "function": {"strict": strict, **spec["function"]}}


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


def _langchain_loses(model: type[BaseModel]) -> bool:
    """Whether LangChain's conversion leaves out what a grammar can keep to."""
    schema = model.model_json_schema()
    return _recurs(schema) or schema != model.model_json_schema(schema_generator=Exact)


def _of_model(model: type[BaseModel]) -> dict[str, Any]:
    return _written_out(model.model_json_schema(schema_generator=Untitled))


def _of_dataclass(given: type) -> dict[str, Any]:
    """LangChain reads the constructor alone, and tells the model of that."""
    try:
        schema = _written_out(TypeAdapter(given).json_schema(schema_generator=Untitled))
    except (PydanticUserError, NameError) as error:
        raise ConfigError("schema", given, str(error)) from error
    keys = schema.get("properties", {})
    about, said = told_in_docstring(given, keys)
    if about and "description" in schema:  # one that Python made up is none
        schema["description"] = about
    told = {k: {"description": said[k]} | one if k in said else one for k, one in keys.items()}
    return {**schema, "properties": told}


def _written_out(schema: dict[str, Any]) -> dict[str, Any]:
    """With its definitions where they are used, as LangChain has them, unless one holds itself."""
    schema = _rooted(schema)
    if not _recurs(schema):
        schema = {k: v for k, v in dereference_refs(schema).items() if k != "$defs"}
    head = [key for key in ("title", "description") if key in schema]
    return {key: schema[key] for key in (*head, *schema)}


def _is_class_of_fields(given: object) -> bool:
    return _is_dataclass(given) or (isinstance(given, type) and is_basemodel_subclass(given))


def _is_dataclass(given: object) -> TypeGuard[type]:
    return isinstance(given, type) and is_dataclass(given)


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
