"""What a choice of tools may look like, and what it means."""

from __future__ import annotations

import pytest

from whiflash_adapters.tool_choice import ToolChoice, resolve
from whiflash_engine.errors import ConfigError

ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}
MUL = {"type": "function", "function": {"name": "mul", "parameters": {}}}
BOTH = (ADD, MUL)


@pytest.mark.parametrize("word", ["auto", "any", "required", "none"])
def test_anthropics_forms_mean_what_their_word_means(word: str) -> None:
    assert resolve(BOTH, {"type": word}) == resolve(BOTH, word)


@pytest.mark.parametrize(
    "choice",
    [
        "mul",
        {"name": "mul"},
        {"type": "tool", "name": "mul"},
        {"type": "function", "function": {"name": "mul"}},
    ],
)
def test_one_tool_by_its_name(choice: ToolChoice) -> None:
    mode, allowed = resolve(BOTH, choice)
    assert mode == "required" and list(allowed) == [MUL]


@pytest.mark.parametrize(
    "choice", [{"type": "mul"}, {"type": "tool"}, {"type": "tool", "name": "any"}, {}, "launch"]
)
def test_what_names_no_tool_is_refused(choice: ToolChoice) -> None:
    with pytest.raises(ConfigError, match=r"^tool_choice=.*no such tool.*add, mul"):
        resolve(BOTH, choice)


def test_a_list_of_allowed_tools_is_not_supported() -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}
    with pytest.raises(ConfigError, match=r"^tool_choice=.*not supported"):
        resolve(BOTH, choice)


@pytest.mark.parametrize("choice", ["any", True, {"type": "any"}])
def test_nothing_can_be_demanded_of_no_tools(choice: ToolChoice) -> None:
    with pytest.raises(ConfigError, match=r"^tool_choice=.*no tools"):
        resolve((), choice)
