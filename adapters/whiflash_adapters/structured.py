"""Structured output: what `response_format` means, and answers parsed into the user's type."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import (
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableMap,
    RunnablePassthrough,
)
from langchain_core.utils.pydantic import is_basemodel_subclass

from whiflash_adapters.formats.tools import name_of
from whiflash_adapters.json_schemas import Schema, as_tool, json_schema, unwrapped
from whiflash_adapters.json_values import in_json
from whiflash_adapters.messages import TemplateMessage
from whiflash_engine.errors import ConfigError

Method = Literal["json_schema", "json_mode", "function_calling"]

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
    plain = in_json("response_format", schema)
    assert isinstance(plain, dict)
    return plain


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


def let_pass(given: object) -> bool:
    """Whether a `response_format` has strict=False: what no grammar can keep to is let through."""
    inner = given.get("json_schema") if isinstance(given, Mapping) else None
    return isinstance(inner, Mapping) and inner.get("strict") is False


def checked_at_end(check: Callable[[AIMessage], None]) -> Runnable[AIMessage, AIMessage]:
    """Passes an answer on as it streams and checks it at its end. LangChain's parsers complete
    what is cut short, which serves a stream while it runs, and would be a lie about its end."""

    def passed(pieces: Iterator[AIMessage]) -> Iterator[AIMessage]:
        said = []
        for piece in pieces:
            said.append(piece)
            yield piece
        check(_sum(said))

    async def apassed(pieces: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
        said = []
        async for piece in pieces:
            said.append(piece)
            yield piece
        check(_sum(said))

    return RunnableGenerator(passed, apassed, name="checked_at_end")


def _sum(said: Sequence[AIMessage]) -> AIMessage:
    """In one addition: piece by piece each would copy all that was said before it."""
    chunks = [piece for piece in said if isinstance(piece, AIMessageChunk)]
    if len(chunks) > 1:
        total = chunks[0] + chunks[1:]
        assert isinstance(total, AIMessageChunk)
        return total
    return said[0] if said else AIMessage("")


def _document(answer: AIMessage) -> None:
    try:
        json.loads(answer.text)
    except ValueError as error:
        raise _unfit(answer, answer.text, "is not JSON") from error


def _call(answer: AIMessage) -> None:
    if not answer.tool_calls:
        broken = [call["args"] or "" for call in answer.invalid_tool_calls]
        raise _unfit(answer, "".join(broken) or answer.text, "is not a call with JSON arguments")


def _unfit(answer: AIMessage, said: str, why: str) -> OutputParserException:
    if stop := answer.response_metadata.get("stop_sequence"):
        why += f", for the stop string {stop!r} cut it"
    if answer.response_metadata.get("finish_reason") == "length":
        why = "was cut short (finish_reason 'length', see max_tokens)"
    return OutputParserException(f"The answer {why}: {said}", llm_output=said)


def _by_document(
    schema: Schema | None, as_json: Mapping[str, Any] | None, strict: bool | None
) -> tuple[dict[str, object], Runnable[AIMessage, Any]]:
    """What to ask of the model for an answer that is the document, and what reads it."""
    asked: dict[str, object] = {"type": "json_object"}
    if as_json is not None:
        inner = {"name": as_json.get("title", "answer"), "schema": as_json, "strict": strict}
        asked = {"type": "json_schema", "json_schema": inner}
    parser: Runnable[AIMessage, Any] = JsonOutputParser()
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    return {"response_format": asked}, checked_at_end(_document) | parser


def _by_call(
    schema: Schema, as_json: Mapping[str, Any], strict: bool | None
) -> tuple[dict[str, object], Runnable[AIMessage, Any]]:
    """The same for a call whose arguments are the document."""
    if as_json.get("type", "object") != "object":
        why = "the arguments of a call are an object; method 'json_schema' takes any type"
        raise ConfigError("schema type", as_json["type"], why)
    tool = as_tool({"title": "answer", **as_json} if schema is as_json else schema)
    parser: Runnable[AIMessage, Any] = JsonOutputKeyToolsParser(
        key_name=name_of(tool), first_tool_only=True
    )
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = PydanticToolsParser(tools=[schema], first_tool_only=True)
    return {"tools": [tool], "tool_choice": "any", "strict": strict}, checked_at_end(_call) | parser


def structured(
    bind: Callable[..., Runnable[LanguageModelInput, AIMessage]],
    schema: Schema | None,
    *,
    method: Method,
    include_raw: bool,
    strict: bool | None,
) -> Runnable[LanguageModelInput, Any]:
    """A model that answers with JSON of this schema, and a parser behind it.

    bind: of the chat model. schema: see `json_schema`; also OpenAI's {"name", "schema", "strict"}.
    Only json_mode does without; with one it keeps to it as json_schema does: any object at all
    would be of use to nobody who has said which one. strict: False lets through what no grammar
    can keep to.
    """
    if method not in get_args(Method):
        raise ConfigError("method", method, f"must be one of {', '.join(get_args(Method))}")
    if schema is None and method != "json_mode":
        raise ConfigError("schema", None, f"method {method!r} needs one")
    if isinstance(schema, dict):
        schema, strict = unwrapped(schema, strict)
    as_json = None if schema is None else json_schema(schema)
    if schema is not None and as_json is not None and method == "function_calling":
        asked, read = _by_call(schema, as_json, strict)
    else:
        asked, read = _by_document(schema, as_json, strict)
    origin = {"kwargs": {"method": method}, "schema": as_json}
    model = bind(**asked, ls_structured_output_format=origin)
    if not include_raw:
        return model | read
    parse = RunnablePassthrough.assign(
        parsed=lambda found: read.invoke(found["raw"]), parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parse.with_fallbacks([failed], exception_key="parsing_error")
