"""Values inside of schemas that JSON has no word for, and what holds of numbers and of one tool."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any, Literal

import pytest
from langchain_core.exceptions import ModelInvalidRequestError
from pydantic import BaseModel, Field, RootModel

from tests.fake_engine import TOOLLESS_TEMPLATE, FakeEngine, byte_tokenizer
from tests.test_chat import chat_of
from tests.test_complaints import allows
from tests.toys_text import write_call
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.choose import FORMATS
from whiflash_adapters.json_schemas import as_tool, json_schema
from whiflash_adapters.structured import response_schema
from whiflash_engine.errors import ConfigError, ConstraintError


class Reading(BaseModel):
    """A reading."""

    most: float = math.inf
    least: float = Field(default=-1.0, examples=[math.nan])


def only_json(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.parametrize("template", [None, TOOLLESS_TEMPLATE])
def test_an_infinite_default_is_told_as_json_and_costs_no_tool(template: str | None) -> None:
    engine = FakeEngine("x", tokenizer=byte_tokenizer(template=template))
    chat = ChatWhiFlash(engine=engine)
    chat.bind_tools([Reading]).invoke("hi", constrain="always")
    assert allows(engine.grammars[0], write_call("Reading", {"most": 2.5}))
    (told,) = (line for line in engine.prompts[0].splitlines() if '"most"' in line)
    json.loads(told.strip("[]"), parse_constant=only_json)
    ids = engine.tokenizer.encode(engine.prompts[0], add_special_tokens=False)
    assert chat.get_num_tokens_from_messages("hi", [Reading]) == len(ids)


def test_an_infinite_default_costs_no_document() -> None:
    chat, engine = chat_of("{}")
    assert chat.with_structured_output(Reading).invoke("hi") == Reading()
    (told,) = (line for line in engine.prompts[0].splitlines() if '"most"' in line)
    json.loads(told.removesuffix("<|im_end|>"), parse_constant=only_json)


def dated(value: object) -> dict[str, Any]:
    day = {"type": "string", "format": "date", "default": value}
    return {"title": "plan", "type": "object", "properties": {"day": day}}


def test_a_date_of_yaml_is_its_text() -> None:
    chat, engine = chat_of("{}")
    chat.with_structured_output(dated(date(2024, 2, 29))).invoke("hi")
    chat.bind_tools([dated(date(2024, 2, 29))]).invoke("hi")
    assert all('"default": "2024-02-29"' in prompt for prompt in engine.prompts)


def test_a_value_that_json_cannot_hold_is_told_by_its_place() -> None:
    chat, engine = chat_of("{}")
    wrong = dated(object())
    with pytest.raises(ConfigError, match=r"^response_format=.*<object object.*JSON"):
        chat.with_structured_output(wrong).invoke("hi")
    with pytest.raises(ConfigError, match=r"^tools\[1\]=.*<object object.*JSON"):
        chat.bind_tools([Reading, wrong]).invoke("hi")
    assert engine.prompts == []


class Bill(BaseModel):
    """A bill."""

    total: Decimal
    paid: Decimal = Field(default=Decimal("1.5"), ge=0)


class Bills(BaseModel):
    """All bills."""

    bills: list[Bill]


def pay(total: Decimal) -> str:
    """Pay it."""
    return str(total)


@pytest.mark.parametrize(
    ("total", "fits"),
    [('"12.50"', True), ("-12.5", True), ('"much"', False), ('""', False), ('"1."', False)],
)
def test_a_decimal_is_a_number(total: str, fits: bool) -> None:
    chat, engine = chat_of('{"bills": []}')
    chat.with_structured_output(Bills).invoke("hi")
    assert allows(engine.grammars[0], f'{{"bills": [{{"total": {total}}}]}}') is fits
    assert "$ref" not in engine.prompts[0]
    chat.bind_tools([pay]).invoke("hi", strict=True)
    call = write_call("pay", {"total": json.loads(total)})
    assert allows(engine.grammars[1], call) is fits


@pytest.mark.parametrize(("paid", "fits"), [("2.5", True), ("-1", False), ('"2.5"', False)])
def test_a_decimal_keeps_to_its_bounds(paid: str, fits: bool) -> None:
    chat, engine = chat_of('{"total": 1}')
    chat.with_structured_output(Bill).invoke("hi")
    assert allows(engine.grammars[0], f'{{"total": 1, "paid": {paid}}}') is fits


def test_the_default_of_a_decimal_in_bounds_is_a_number() -> None:
    assert as_tool(Bill)["function"]["parameters"]["properties"]["paid"]["default"] == 1.5


def test_bounds_of_a_schema_are_numbers_or_none() -> None:
    size = {"type": "number", "minimum": Decimal("1.5"), "maximum": math.inf}
    schema = MappingProxyType({"type": "object", "properties": {"n": size}, "required": ["n"]})
    asked = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert response_schema(asked) == {
        "type": "object", "properties": {"n": {"type": "number", "minimum": 1.5}},
        "required": ["n"],
    }  # fmt: skip


@dataclass
class Parcel:
    """A parcel.

    Args:
        weight: in kilograms
    """

    weight: Decimal
    inside: list[Parcel] = dataclasses.field(default_factory=list)
    number: int = dataclasses.field(default=3, init=False)


@dataclass
class Words:
    words: list[str] = dataclasses.field(default_factory=list)


def test_a_dataclass_is_told_by_its_fields() -> None:
    schema = json_schema(Parcel)
    assert (schema["title"], schema["description"]) == ("Parcel", "A parcel.")
    assert [*schema["properties"]] == ["weight", "inside"] and schema["required"] == ["weight"]
    assert schema["properties"]["weight"]["description"] == "in kilograms"
    assert "factory" not in json.dumps(json_schema(Words)) + json.dumps(as_tool(Words))
    assert as_tool(Words)["function"]["description"] == ""  # for templates that always read one


def test_a_grammar_keeps_to_a_dataclass() -> None:
    chat, engine = chat_of('{"weight": 1}')
    chat.with_structured_output(Parcel).invoke("hi")
    chat.bind_tools([Parcel]).invoke("hi")
    for inside, fits in (({"weight": 2}, True), ({"weight": "much"}, False), ({}, False)):
        parcel = {"weight": 1, "inside": [{"weight": 1, "inside": [inside]}]}
        assert allows(engine.grammars[0], json.dumps(parcel)) is fits
        assert allows(engine.grammars[1], write_call("Parcel", parcel)) is fits


def test_a_dataclass_that_has_no_schema_is_told() -> None:
    @dataclass
    class Lost:
        a: Nowhere  # type: ignore[name-defined]  # noqa: F821

    for read in (json_schema, as_tool):
        with pytest.raises(ConfigError, match=r"^schema=.*Lost.*not fully defined"):
            read(Lost)


def numbers(**more: object) -> dict[str, Any]:
    list_ = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    schema = {"type": "object", "properties": {"n": list_}, "required": ["n"]}
    function = {"name": "count", "description": "Count.", "parameters": schema, **more}
    return {"type": "function", "function": function}


def test_a_tool_may_be_strict_by_itself_and_its_model_is_not_told() -> None:
    chat, engine = chat_of("x")
    chat.bind_tools([numbers()]).invoke("hi")
    chat.bind_tools([numbers(strict=False)]).invoke("hi")
    assert engine.prompts[0] == engine.prompts[1] and "strict" not in engine.prompts[0]
    with pytest.raises(ConstraintError, match=r"tool 'count': .*uniqueItems"):
        chat.bind_tools([numbers(strict=True)]).invoke("hi")
    with pytest.raises(ConfigError, match=r"constrain='never'.*strict=True"):
        chat.bind_tools([numbers(strict=True)]).invoke("hi", constrain="never")
    with pytest.raises(ConfigError, match=r"tools\[0\]=.*strict must be"):
        chat.bind_tools([numbers(strict="yes")]).invoke("hi")
    assert len(engine.prompts) == 2


def test_flat_tools_are_strict_too() -> None:
    function = numbers()["function"]
    schema = function["parameters"]
    anthropic = {"name": "count", "input_schema": schema, "strict": True}
    titled = {"title": "count", **schema, "strict": True}
    for given in (anthropic, titled, {**numbers(), "strict": True}):
        told = as_tool(given)["function"]
        assert told["strict"] is True and told["parameters"] == schema
    flat = {"type": "function", **function, "strict": True}
    assert as_tool(flat) == flat and as_tool(numbers(strict=True)) == numbers(strict=True)


@pytest.mark.parametrize("form", FORMATS)
def test_a_strict_tool_is_strict_in_every_form(form: str) -> None:
    lenient = '"lenient": true'
    for tool, let_pass in ((numbers(), True), (numbers(strict=True), False)):
        lark = FORMATS[form].grammar(Ask([tool], "required"))
        assert (lenient in lark) is let_pass


class Colour(Enum):
    """A colour."""

    RED = "red"


def function(n: int) -> int:
    return n


@pytest.mark.parametrize(
    "wrong",
    [Colour, int, str, Literal["a"], int | str, list[Bill], list, Bill(total=Decimal(1)), function],
)
def test_a_type_that_is_no_class_of_fields_is_refused_with_the_way_out(
    wrong: type | Callable[..., object],
) -> None:
    chat, _ = chat_of("x")
    with pytest.raises(ConfigError, match=r"^schema=.*TypedDict.*RootModel") as refused:
        chat.with_structured_output(wrong)  # type: ignore[arg-type]
    assert isinstance(refused.value, ModelInvalidRequestError)


def test_a_root_model_is_an_answer_of_any_type() -> None:
    chat, engine = chat_of("[1, 2]")
    found = chat.with_structured_output(RootModel[list[int]]).invoke("hi")
    assert found == RootModel[list[int]]([1, 2])
    assert not allows(engine.grammars[0], '["a"]')
