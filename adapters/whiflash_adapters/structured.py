"""Structured output: what `response_format` means, and answers parsed into the user's type."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from whiflash_adapters.messages import TemplateMessage
from whiflash_engine.errors import ConfigError

Method = Literal["json_schema", "json_mode", "function_calling"]
Schema = dict[str, Any] | type

_ANY_OBJECT: Mapping[str, object] = {"type": "object"}


def response_schema(given: object) -> Mapping[str, object] | None:
    """The JSON schema that a `response_format` asks for; None if it asks for nothing.

    {"type": "json_schema", "json_schema": {"schema": ...}}, {"type": "json_object"} or
    {"type": "text"}, as OpenAI has them.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError("response_format", given, "must be an object with a 'type'")
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _ANY_OBJECT
    inner = given.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        why = "must be of type text, json_object, or json_schema with a 'schema'"
        raise ConfigError("response_format", given, why)
    return schema


def with_schema(
    turns: Sequence[TemplateMessage], schema: Mapping[str, object]
) -> list[TemplateMessage]:
    """The same conversation, its system prompt told of the schema: a grammar keeps an answer to
    the form, but only the model can follow what the descriptions say."""
    if schema == _ANY_OBJECT:
        return list(turns)
    said = f"Answer with a JSON object that matches this schema:\n{json.dumps(schema)}"
    if turns and turns[0]["role"] == "system":
        content = f"{turns[0]['content']}\n\n{said}".strip()
        return [{**turns[0], "content": content}, *turns[1:]]
    return [{"role": "system", "content": said}, *turns]


def _titled(schema: Schema) -> Schema:
    """LangChain refuses a bare JSON schema that has no title; here none is needed."""
    bare = isinstance(schema, dict) and schema.get("type") not in (None, "function")
    return {"title": "answer", **schema} if bare and isinstance(schema, dict) else schema


def structured(
    bind: Callable[..., Runnable[LanguageModelInput, AIMessage]],
    schema: Schema | None,
    *,
    method: Method,
    include_raw: bool,
    strict: bool | None,
) -> Runnable[LanguageModelInput, Any]:
    """A model that answers with JSON of this schema, and a parser behind it.

    bind: of the chat model. schema: a Pydantic class (v2 or v1), a TypedDict class or a JSON
    schema. Only json_mode does without; with one it keeps to it as json_schema does: any object
    at all would be of use to nobody who has said which one.
    """
    if method not in get_args(Method):
        raise ConfigError("method", method, f"must be one of {', '.join(get_args(Method))}")
    if schema is None and method != "json_mode":
        raise ConfigError("schema", None, f"method {method!r} needs one")
    asked: dict[str, object] = {"type": "json_object"}
    told: object = None if schema is None else convert_to_json_schema(_titled(schema))
    if isinstance(told, dict):
        inner = {"name": told.get("title", "answer"), "schema": told}
        asked = {"type": "json_schema", "json_schema": inner}
        if strict is not None:
            inner["strict"] = strict
    model = bind(
        response_format=asked,
        ls_structured_output_format={"kwargs": {"method": method}, "schema": told},
    )
    parser: Runnable[AIMessage, Any] = JsonOutputParser()
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    if not include_raw:
        return model | parser
    parse = RunnablePassthrough.assign(
        parsed=lambda found: parser.invoke(found["raw"]), parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parse.with_fallbacks([failed], exception_key="parsing_error")
