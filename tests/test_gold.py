"""When a call counts as right."""

from __future__ import annotations

import json

import pytest

from whiflash_engine.training.gold import Call, gold_number, is_irrelevant, last_number
from whiflash_engine.training.gold_match import Accepted, accepted_call
from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.rows import PromptRow


def row(source: str = "bfcl") -> PromptRow:
    properties: dict[str, object] = {name: {} for name in "abcd"}
    parameters = {"type": "object", "properties": properties, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return PromptRow("x-1", "tool", source, ({"role": "user"},), (json.loads(json.dumps(tool)),))


def gold(**accepted: JsonValue) -> Accepted:
    found = accepted_call(row(), {"ground_truth": [{"f": dict(accepted)}]})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({"a": 5}, True),
        ({"a": 5.0}, True),
        ({"a": 6}, True),
        ({"a": "5"}, False),
        ({"a": True}, False),
        ({"a": 5, "b": "new-york, ny"}, True),
        ({"a": 5, "b": "Boston"}, False),
        ({"b": "New York NY"}, False),
        ({"a": 5, "z": 1}, False),
        ({"a": 5, "c": {"k": "w"}}, True),
        ({"a": 5, "c": {"k": "x"}}, False),
        ({"a": 5, "c": {}}, False),
        ({"a": 5, "d": [1, "Two"]}, True),
        ({"a": 5, "d": [1]}, False),
    ],
)
def test_any_accepted_value_is_right(arguments: dict[str, JsonValue], fits: bool) -> None:
    accepted = gold(a=[5, 6], b=["", "New York NY"], c=["", {"k": ["v", "w"]}], d=["", [1, "two"]])
    assert accepted.fits(Call("f", arguments)) is fits


def test_the_tool_must_be_the_right_one() -> None:
    assert not gold(a=[5]).fits(Call("g", {"a": 5}))


def test_a_plain_reference_accepts_its_own_values() -> None:
    found = accepted_call(row("snips"), {"gold": {"name": "f", "args": {"a": "Two words"}}})
    assert found is not None and found.fits(Call("f", {"a": "two words"}))
    assert not found.fits(Call("f", {"a": "two"}))


def test_rows_with_several_calls_or_none_are_left_out() -> None:
    twice: JsonValue = {"ground_truth": [{"f": {"a": [1]}}, {"f": {"a": [2]}}]}
    assert accepted_call(row(), twice) is None
    assert accepted_call(row(), {"ground_truth": None}) is None


def test_where_no_tool_fits() -> None:
    assert is_irrelevant(row(), {"bfcl_id": "irrelevance_7"})
    assert is_irrelevant(row(), {"bfcl_id": "live_irrelevance_7-0-0"})
    assert not is_irrelevant(row(), {"bfcl_id": "simple_python_7"})
    assert is_irrelevant(row("when2call"), {"behaviour": "cannot_answer"})
    assert not is_irrelevant(row("when2call"), {"behaviour": "tool_call"})
    assert not is_irrelevant(row(), None)


def test_numbers_are_found_in_answers() -> None:
    assert last_number("That is 1,250.50 dollars.") == 1250.5
    assert last_number("none") is None
    assert gold_number({"answer": ["98"]}) == 98 and gold_number({"answer": 51.0}) == 51
    assert gold_number({"answer": ["1", "2"]}) is None and gold_number(None) is None
