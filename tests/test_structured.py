"""Answers of a type: which schema the grammar gets, and what is read from the answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.runnables import Runnable, RunnableGenerator
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, Json

from tests.test_chat import CALL, TOOLS, chat_of
from tests.test_complaints import allows
from tests.toys_text import write_call
from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.choose import named
from whiflash_adapters.structured import checked_at_end, structured
from whiflash_engine.errors import ConfigError, ConstraintError

INTEGERS = {"type": "array", "items": {"type": "integer"}}
CITY = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class Node(BaseModel):
    """A part of a tree."""

    name: str = Field(alias="Name", description="what it is called")
    size: int = 3
    children: list[Node] = []


class Tree(BaseModel):
    """A tree."""

    root: Node


class Point(TypedDict):
    """A point."""

    n: int


@dataclass
class Place:
    """A place."""

    n: int


LEAF = '{"Name": "a", "size": 1, "children": [{"Name": "b", "size": 1, "children": []}]}'
NO_LEAF = '{"Name": "a", "size": 1, "children": [{"Name": 5}]}'


def grammar_of(schema: Any, **options: Any) -> str:
    chat, engine = chat_of("{}")
    chat.with_structured_output(schema, include_raw=True, **options).invoke("hi")
    return engine.grammars[-1]


def calling(chat: Any, schema: Any, *, include_raw: bool = False) -> Runnable[Any, Any]:
    return structured(
        chat.bind, schema, method="function_calling", include_raw=include_raw, strict=None
    )


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (INTEGERS, "[1, 2]", '["a"]'),
        ({"title": "x", "anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", '"a"'),
        ({"title": "m", "type": "object", "additionalProperties": {"type": "integer"}},
         '{"a": 1}', '{"a": "b"}'),
        ({"title": "x", "$ref": "#/$defs/C", "$defs": {"C": CITY}}, '{"n": 1}', '{"n": "a"}'),
        ({"$ref": "#/$defs/C", "$defs": {"C": CITY}}, '{"n": 1}', "{}"),
        ({"enum": ["a", "b"]}, '"b"', '"c"'),
        (CITY, '{"n": 1}', "{}"),
        ({"name": "city", "schema": CITY, "strict": True}, '{"n": 1}', "{}"),
        ({"name": "city", **CITY}, '{"n": 1}', "{}"),
        ({"name": "city", "description": "", "parameters": CITY}, '{"n": 1}', "{}"),
        ({"type": "function", "function": {"name": "city", "parameters": CITY}}, '{"n": 1}', "{}"),
        ({"name": "city", "input_schema": CITY}, '{"n": 1}', "{}"),
        (Point, '{"n": 1}', "{}"),
        (Place, '{"n": 1}', "{}"),
        (Node, LEAF, NO_LEAF),
        (Tree, f'{{"root": {LEAF}}}', f'{{"root": {NO_LEAF}}}'),
    ],
)  # fmt: skip
def test_the_grammar_gets_all_of_a_schema(schema: Any, good: str, bad: str) -> None:
    lark = grammar_of(schema)
    assert allows(lark, good) and not allows(lark, bad)


def test_a_schema_may_be_of_any_type() -> None:
    found: Any = chat_of("[1, 2]")[0].with_structured_output(INTEGERS).invoke("hi")
    assert found == [1, 2]
    with pytest.raises(ConfigError, match="type='array'"):
        calling(chat_of("x")[0], INTEGERS)


def test_the_model_is_told_of_what_a_class_says_of_itself() -> None:
    chat, engine = chat_of(LEAF)
    found = chat.with_structured_output(Node).invoke("hi")
    assert isinstance(found, Node) and found.children[0].name == "b"
    for said in ('"title": "Node"', "A part of a tree.", '"Name"', "what it is called", "#/$defs"):
        assert said in engine.prompts[0]
    assert '"title": "Size"' not in engine.prompts[0]


CUT = '{"name": "Site", "url": "http'
SITE = {"title": "site", "type": "object", "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize("schema", [SITE, Tree])
def test_a_document_that_was_cut_is_no_answer(schema: Any) -> None:
    chat, _ = chat_of(CUT + "s", max_tokens=len(CUT))
    with pytest.raises(OutputParserException, match=r"cut short.*finish_reason 'length'"):
        chat.with_structured_output(schema).invoke("hi")
    told: Any = chat.with_structured_output(schema, include_raw=True).invoke("hi")
    assert told["raw"].text == CUT and told["parsed"] is None
    assert isinstance(told["parsing_error"], OutputParserException)


def test_a_document_that_is_no_json_is_no_answer() -> None:
    chat, _ = chat_of(CUT)
    with pytest.raises(OutputParserException, match="is not JSON"):
        chat.with_structured_output(SITE).invoke("hi")


def test_a_stop_string_that_cut_a_document_or_came_before_a_call_is_told() -> None:
    chat, _ = chat_of(CUT)
    told = "is not JSON, for the stop string 'url' cut it"
    with pytest.raises(OutputParserException, match=told):
        chat.with_structured_output(SITE).invoke("hi", stop=["x", "url"])
    calls, _ = chat_of("I see." + write_call("answer", {"n": 1}), stop=["see"])
    with pytest.raises(OutputParserException, match="the stop string 'see' cut it"):
        calling(calls, CITY).invoke("hi")


def test_a_document_that_just_fits_is_an_answer() -> None:
    said = '{"name": "Site"}'
    chat, _ = chat_of(said, max_tokens=len(said))
    assert chat.with_structured_output(SITE).invoke("hi") == {"name": "Site"}


def test_a_stream_grows_and_tells_at_its_end_that_it_was_cut() -> None:
    chat, _ = chat_of(CUT + "s", max_tokens=len(CUT))
    seen: list[Any] = []
    with pytest.raises(OutputParserException, match="cut short"):
        for part in chat.with_structured_output(SITE).stream("hi"):
            seen.append(part)
    assert seen[0] == {} and seen[-1] == {"name": "Site", "url": "http"} and len(seen) > 3


async def test_async_streams_grow_as_well() -> None:
    chat, _ = chat_of(LEAF)
    schema: Any = Node.model_json_schema()
    seen: list[Any] = [part async for part in chat.with_structured_output(schema).astream("hi")]
    assert len(seen) > 3 and seen[-1]["children"] == [{"Name": "b", "size": 1, "children": []}]
    assert await chat.with_structured_output(schema).ainvoke("hi") == seen[-1]


@pytest.mark.parametrize("schema", [SITE, Tree])
def test_a_call_that_was_cut_is_no_answer(schema: Any) -> None:
    said = write_call(schema["title"] if isinstance(schema, dict) else "Tree", {"name": "Site"})
    chat, _ = chat_of(said, max_tokens=len(said) - 16)
    with pytest.raises(OutputParserException, match=r"cut short.*finish_reason 'length'"):
        calling(chat, schema).invoke("hi")
    told = calling(chat, schema, include_raw=True).invoke("hi")
    assert told["parsed"] is None and isinstance(told["parsing_error"], OutputParserException)
    with pytest.raises(OutputParserException, match="cut short"):
        list(calling(chat, schema).stream("hi"))


def test_the_arguments_of_a_whole_call_are_the_answer() -> None:
    leaf = {"Name": "a", "size": 1, "children": []}
    chat, engine = chat_of(write_call("Node", leaf))
    assert calling(chat, Node).invoke("hi") == Node(Name="a", size=1)
    assert not allows(engine.grammars[0], write_call("Node", {**leaf, "children": [5]}))
    chat, engine = chat_of(write_call("answer", {"n": 1}))
    assert calling(chat, CITY).invoke("hi") == {"n": 1}
    assert not allows(engine.grammars[0], write_call("answer", {"n": "one"}))


def grow(tree: Node, user: Annotated[str, InjectedToolArg]) -> str:
    """Grow a tree."""
    return user


def plant(tree: Node) -> str:
    """Plant a tree."""
    return tree.name


GROW = StructuredTool.from_function(grow)
FROM_SCHEMA = StructuredTool.from_function(
    grow, name="grow", description="Grow.", args_schema=Tree.model_json_schema()
)


@pytest.mark.parametrize(
    ("tool", "name", "key"),
    [(Tree, "Tree", "root"), (GROW, "grow", "tree"), (FROM_SCHEMA, "grow", "root"),
     (plant, "plant", "tree"), (Node, "Node", None)],
)  # fmt: skip
@pytest.mark.parametrize("form", ["smollm2", "qwen-coder", "harmony"])
def test_tools_take_arguments_that_hold_themselves(
    tool: type | BaseTool | Callable[..., str], name: str, key: str | None, form: str
) -> None:
    bound: Any = chat_of("x")[0].bind_tools([tool])
    (spec,) = bound.kwargs["tools"]
    assert spec["function"]["name"] == name and "user" not in str(spec)
    assert "what it is called" in str(spec) and "'default': 3" in str(spec)
    lark = named(form).grammar(Ask([spec], "required"))
    inner: dict[str, Any] = {"Name": "a", "size": 1, "children": []}
    for child, fits in ((inner, True), ({"size": "big"}, False)):
        node = {**inner, "children": [child]}
        said = named(form).write([(name, node if key is None else {key: node})])
        assert allows(lark, said) is fits


def test_a_tool_may_have_a_schema_without_named_properties() -> None:
    counts = {"title": "count", "type": "object", "additionalProperties": {"type": "integer"}}
    chat, engine = chat_of("x")
    chat.bind_tools([counts]).invoke("hi")
    assert allows(engine.grammars[0], write_call("count", {"a": 1}))
    assert not allows(engine.grammars[0], write_call("count", {"a": "b"}))


def test_other_tools_are_told_of_in_langchains_words() -> None:
    class Trip(BaseModel):
        """A trip."""

        place: Annotated[Odd, Field(description="where to")]

    def travel(odd: Odd, days: int = 3) -> str:
        """Go there.

        Args:
            odd: which one
        """
        return f"{odd} {days}"

    bare, provided = {"name": "now", "description": "The time."}, {"type": "web_search"}
    tools: list[Any] = [*TOOLS, Point, Trip, travel, lambda n: n, bare, provided]
    bound: Any = chat_of("x")[0].bind_tools(tools)
    assert bound.kwargs["tools"] == [convert_to_openai_tool(tool) for tool in tools]


class Odd(BaseModel):
    """What no grammar can promise."""

    numbers: set[int]


class Inner(BaseModel):
    """A document in a string."""

    text: Json[list[int]]


class Rule(BaseModel):
    """A pattern."""

    pattern: re.Pattern[str]


class Some(BaseModel):
    """Numbers by names that are known."""

    named: dict[Literal["a", "b"], int]


@pytest.mark.parametrize(
    ("schema", "said", "wanted"),
    [
        (Odd, '{"numbers": [1, 1]}', Odd(numbers={1})),
        (Inner, '{"text": "[1]"}', Inner.model_validate({"text": "[1]"})),
        (Rule, '{"pattern": "a+"}', Rule(pattern=re.compile("a+"))),
        (Some, '{"named": {"a": 1}}', Some(named={"a": 1})),
    ],
)
def test_not_strict_leaves_to_the_class_what_no_grammar_can_keep(
    schema: Any, said: str, wanted: Any
) -> None:
    chat, _ = chat_of(said)
    assert chat.with_structured_output(schema, strict=False).invoke("hi") == wanted
    for strict in (None, True):
        with pytest.raises((ConstraintError, ConfigError), match="strict=False"):
            chat.with_structured_output(schema, strict=strict).invoke("hi")
    with pytest.raises((ConstraintError, ConfigError)) as refused:
        chat.with_structured_output(schema, strict=False).invoke("hi", constrain="always")
    assert "strict=False" not in str(refused.value)
    harmony, _ = chat_of(f"<|channel|>final<|message|>{said}", tool_format="harmony")
    assert harmony.with_structured_output(schema, strict=False).invoke("hi") == wanted


def test_what_the_class_does_not_accept_is_an_error_afterwards() -> None:
    chat, _ = chat_of('{"text": "[oops"}')
    with pytest.raises(OutputParserException, match="Inner"):
        chat.with_structured_output(Inner, strict=False).invoke("hi")


def test_a_schema_may_say_itself_that_it_is_not_strict() -> None:
    odd = {"type": "array", "uniqueItems": True}
    chat, _ = chat_of("[1, 1]")
    wrapped = {"name": "numbers", "schema": odd, "strict": False}
    found: Any = chat.with_structured_output(wrapped).invoke("hi")
    assert found == [1, 1]
    asked = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": odd}}
    assert chat.invoke("hi", response_format=asked, strict=False).text == "[1, 1]"
    with pytest.raises(ConstraintError, match=r"uniqueItems.*strict=False"):
        chat.with_structured_output(wrapped, strict=True).invoke("hi")


@pytest.mark.parametrize(
    "promise", [{"parallel_tool_calls": False}, {"strict": True}, {"tool_choice": "any"}]
)
def test_without_a_grammar_nothing_is_promised(promise: dict[str, Any]) -> None:
    chat, engine = chat_of(CALL, constrain="never")
    bound = chat.bind_tools(TOOLS)
    (name,) = promise
    with pytest.raises(ConfigError, match=rf"constrain='never'.*{name}"):
        bound.invoke("hi", **promise)
    assert engine.prompts == []
    bound.invoke("hi", parallel_tool_calls=True, strict=False)
    assert len(engine.prompts) == 1


def piece(args: str, position: Literal["last"] | None = None) -> AIMessageChunk:
    call = tool_call_chunk(name=None if args else "f", args=args, id=None, index=0)
    return AIMessageChunk(content="", tool_call_chunks=[call], chunk_position=position)


async def aiter_of(pieces: Sequence[AIMessage]) -> AsyncIterator[AIMessage]:
    for one in pieces:
        yield one


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        ([piece(""), *(piece(c) for c in '{"n": 1'), piece("}", "last")], {"n": 1}),
        ([AIMessageChunk(content="x")], None),
        ([AIMessage("x")], None),
        ([], None),
    ],
)
def test_a_stream_is_summed_once_and_checked_at_its_end(
    pieces: list[AIMessage], wanted: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[AIMessage] = []
    runnable, added = checked_at_end(heard.append), list[object]()
    add = AIMessageChunk.__add__

    def counted(one: AIMessageChunk, other: object) -> BaseMessageChunk:
        added.append(other)
        return add(one, other)

    async def read() -> list[AIMessage]:
        return [one async for one in runnable.atransform(aiter_of(pieces))]

    monkeypatch.setattr(AIMessageChunk, "__add__", counted)
    assert list(runnable.transform(iter(pieces))) == pieces
    assert asyncio.run(read()) == pieces
    for said in heard:
        assert [call["args"] for call in said.tool_calls] == ([wanted] if wanted else [])
        assert said.text == "".join(one.text for one in pieces)
    # LangChain adds up what passes through for its own tracing, a piece at a time
    sums = [other for other in added if isinstance(other, list)]
    assert len(heard) == 2 and len(sums) == (2 if wanted else 0)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_empty_stream_is_no_answer(method: Literal["json_schema", "function_calling"]) -> None:
    def silent(asked: Iterator[object]) -> Iterator[AIMessage]:
        yield from (AIMessage("x") for _ in asked if False)

    def bind(**_: object) -> Runnable[Any, AIMessage]:
        return RunnableGenerator(silent)

    read = structured(bind, CITY, method=method, include_raw=False, strict=None)
    with pytest.raises(OutputParserException, match="The answer is not"):
        list(read.stream("hi"))
