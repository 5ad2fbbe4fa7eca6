"""Answers and arguments that are a TypedDict: which keys must be there, what is said of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NotRequired, Required, TypedDict, TypeVar

import pytest
import typing_extensions
from annotated_types import Ge
from pydantic import AfterValidator, Field

from tests.test_chat import chat_of
from tests.test_complaints import allows
from tests.toys_text import write_call
from whiflash_adapters.json_schemas import as_tool, json_schema
from whiflash_engine.errors import ConfigError


class Stop(TypedDict, total=False):
    name: Required[Annotated[str, ..., "what it is called"]]
    minutes: int


class Trip(TypedDict):
    """A trip."""

    stops: list[Stop]
    by: Literal["train", "bus"] | None
    _price: NotRequired[Decimal]
    schema: Annotated[int, 3, "which one"]


class Node(TypedDict):
    next: NotRequired[Link]


class Link(typing_extensions.TypedDict):
    nodes: list[Node]


WHOLE = {"stops": [{"name": "a", "minutes": 5}], "by": "bus", "_price": 2, "schema": 4}


def test_a_key_that_may_be_missing_is_not_demanded() -> None:
    schema = json_schema(Trip)
    assert (schema["title"], schema["description"]) == ("Trip", "A trip.")
    assert schema["required"] == ["stops", "by"] and set(schema["properties"]) == set(WHOLE)
    stop = schema["properties"]["stops"]["items"]
    assert stop["required"] == ["name"] and set(stop["properties"]) == {"name", "minutes"}
    assert "default" not in stop["properties"]["minutes"]
    assert stop["properties"]["name"]["description"] == "what it is called"
    assert schema["properties"]["schema"] == {
        "default": 3, "description": "which one", "type": "integer",
    }  # fmt: skip


def test_a_grammar_keeps_to_its_keys_in_documents_and_calls() -> None:
    chat, engine = chat_of('{"stops": [], "by": null}')
    read: Any = chat.with_structured_output(Trip)
    assert read.invoke("hi") == {"stops": [], "by": None}
    assert allows(engine.grammars[0], '{"stops": [{"name": "a"}], "by": "bus"}')
    assert not allows(engine.grammars[0], '{"stops": [{"minutes": 5}], "by": "bus"}')
    bound, told = chat_of("x")
    bound.bind_tools([Trip]).invoke("hi")
    assert allows(told.grammars[0], write_call("Trip", WHOLE))
    assert allows(told.grammars[0], write_call("Trip", {"stops": [], "by": None}))
    assert not allows(told.grammars[0], write_call("Trip", {"stops": []}))


def test_some_may_hold_one_another() -> None:
    chat, engine = chat_of("{}")
    chat.with_structured_output(Node).invoke("hi")
    assert allows(engine.grammars[0], '{"next": {"nodes": [{}, {"next": {"nodes": []}}]}}')
    assert not allows(engine.grammars[0], '{"next": {"nodes": [{"next": {}}]}}')
    assert as_tool(Node)["function"]["name"] == "Node"


class Told(TypedDict, total=False):
    """What is told.

    And how.

    Args:
        a: the first
        b: the second
        c: the third
    """

    a: Required[int]
    b: Annotated[int, "by itself"]
    c: Annotated[int, Field(description="in Pydantic's words")]


def test_a_docstring_tells_of_keys_that_do_not_tell_of_themselves() -> None:
    schema = json_schema(Told)
    said = {key: one["description"] for key, one in schema["properties"].items()}
    assert said == {"a": "the first", "b": "by itself", "c": "in Pydantic's words"}
    assert schema["description"] == "What is told. And how."
    assert as_tool(Told)["function"]["description"] == "What is told. And how."


class Bounded(TypedDict, total=False):
    field: Annotated[int, Field(ge=1), "how many"]
    bare: Annotated[int, Ge(1), "how many"]
    nested: Required[Annotated[Annotated[int, Ge(1)], ..., "how many"]]
    usual: Annotated[int, Ge(1), 3, "how many"]
    checked: Annotated[int, Ge(1), AfterValidator(abs), "how many"]
    inner: Annotated[int, Field(default=3, ge=1), "how many"]


def test_bounds_are_no_defaults() -> None:
    schema = json_schema(Bounded)
    assert schema["required"] == ["nested"]
    many = {"description": "how many", "minimum": 1, "type": "integer"}
    for key, one in schema["properties"].items():
        usual = {"default": 3} if key in ("usual", "inner") else {}
        assert one == many | usual


T = TypeVar("T")


class Pair(TypedDict, Generic[T]):
    one: T


class Pairs(TypedDict):
    pairs: list[Pair[int]]


@pytest.mark.parametrize("given", [Pair[int], Pairs])
def test_a_generic_one_is_refused(given: Any) -> None:
    for read in (json_schema, as_tool):
        with pytest.raises(ConfigError, match=r"Pair\[int\]: a generic TypedDict is not supported"):
            read(given)


def test_a_type_that_is_not_there_is_told() -> None:
    class Lost(TypedDict):
        a: Nowhere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigError, match=r"^schema=.*Nowhere"):
        json_schema(Lost)
