"""What may be given for a tool, and how the loop says that something may not."""

from __future__ import annotations

from functools import partial

import pytest

from tests.toys_tools import add, loop, result_of
from whiflash_adapters.json_schemas import as_tool
from whiflash_adapters.own_tools import own_tools
from whiflash_engine.errors import ConfigError


def bare(a: int) -> int:
    return a + 1


async def bare_later(a: int) -> int:
    return a + 2


def test_functions_without_a_docstring_are_tools() -> None:
    assert result_of(bare, {"a": 1}).text == "2"
    assert result_of(bare_later, {"a": 1}).text == "3"


@pytest.mark.parametrize("function", [bare, add])
def test_the_model_is_told_of_a_function_as_if_it_were_bound(function: object) -> None:
    assert callable(function)
    (own,) = own_tools([function]).values()
    assert as_tool(own) == as_tool(function)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "add", "parameters": {}}, "a dict cannot be run"),
        ("add", "must be a function"),
        (None, "must be a function"),
        (partial(add, b=1), "cannot be made a tool"),
    ],
)
def test_what_cannot_be_run_is_named_by_its_place(wrong: object, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"tools\[1\]=.*{said}") as caught:
        loop("hi", tools=[add, wrong])
    assert caught.value.value is wrong


def test_names_must_differ() -> None:
    with pytest.raises(ConfigError, match="names must differ"):
        loop("hi", tools=[add, add])
