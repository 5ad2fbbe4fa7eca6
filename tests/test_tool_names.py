"""Names of tools: what a format could not read back is refused before anything is generated."""

from __future__ import annotations

import pytest

from tests.test_formats import EVERY, calls, joined, tool
from whiflash_adapters.formats.base import Ask, Call, CallFormat
from whiflash_adapters.formats.choose import FORMATS, named
from whiflash_adapters.formats.tools import Tool
from whiflash_engine.errors import ConfigError


def read_back(format_: CallFormat, name: str, tools: list[Tool]) -> list[Call]:
    reader = format_.parser(tools)
    return calls(joined(reader.feed(format_.write([(name, {})])) + reader.finish()))


RAW = ("qwen-coder", "mistral", "deepseek-v3", "deepseek-v3.1", "harmony")
ODD = ["delete draft", "a[b", "a`b", "a>b", "größe", "a\n", ""]


@pytest.mark.parametrize("form", RAW)
@pytest.mark.parametrize("name", [*ODD, "a<b"])
def test_a_name_that_could_not_be_read_back_is_refused_where_names_stand_raw(
    form: str, name: str
) -> None:
    tools = [tool("delete"), tool(name)]
    for make in (lambda: named(form).grammar(Ask(tools)), lambda: named(form).parser(tools)):
        with pytest.raises(ConfigError, match="tool name") as error:
            make()
        assert error.value.value == name


@pytest.mark.parametrize("form", [name for name in FORMATS if name not in RAW])
@pytest.mark.parametrize("name", ODD)
def test_odd_names_stand_in_quotes(form: str, name: str) -> None:
    tools = [tool("delete"), tool(name)]
    assert read_back(named(form), name, tools) == [(name, {})]


@EVERY
def test_usual_names_stand_everywhere(format_: CallFormat) -> None:
    tools = [tool("files.Read_all-2")]
    format_.grammar(Ask(tools))
    assert read_back(format_, "files.Read_all-2", tools) == [("files.Read_all-2", {})]
