"""Functions and LangChain tools, as tools that can be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from langchain_core.tools import BaseTool, tool

from whiflash_engine.config import require
from whiflash_engine.errors import ConfigError

Tools = Sequence[BaseTool | Callable[..., object]]


def own_tools(given: Tools) -> dict[str, BaseTool]:
    """By name. ConfigError names the one that cannot be run."""
    own = [_as_tool(f"tools[{n}]", one) for n, one in enumerate(given)]
    by_name = {one.name: one for one in own}
    require(len(by_name) == len(own), "tools", [one.name for one in own], "names must differ")
    return by_name


def _as_tool(field: str, given: object) -> BaseTool:
    if isinstance(given, BaseTool):
        return given
    if isinstance(given, dict):
        raise ConfigError(field, given, "a dict cannot be run: give the function, or a tool")
    if not callable(given):
        raise ConfigError(field, given, "must be a function or a LangChain tool")
    try:
        # What has no docstring is described by its name alone, as `bind_tools` has it.
        return tool(given, description=None if given.__doc__ else "")
    except Exception as error:  # LangChain's words, which do not say which of the tools it was
        raise ConfigError(field, given, f"cannot be made a tool: {error}") from error
