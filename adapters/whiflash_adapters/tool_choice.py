"""What `tool_choice` means, in all the forms that LangChain and OpenAI allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whiflash_adapters.formats.base import ToolMode
from whiflash_adapters.formats.tools import Tool, name_of
from whiflash_engine.errors import ConfigError

ToolChoice = str | bool | Mapping[str, object] | None


def resolve(tools: Sequence[Tool], choice: ToolChoice) -> tuple[ToolMode, Sequence[Tool]]:
    """The mode, and the tools that may be called."""
    if choice is None or choice is False or choice == "auto":
        return ("auto" if tools else "none"), tools
    if choice == "none":
        return "none", ()
    if choice is True or choice in ("any", "required"):
        if not tools:
            raise ConfigError("tool_choice", choice, "there are no tools to choose from")
        return "required", tools
    name = choice if isinstance(choice, str) else _named(choice)
    chosen = [tool for tool in tools if name_of(tool) == name]
    if not chosen:
        names = ", ".join(name_of(tool) for tool in tools) or "none"
        raise ConfigError("tool_choice", choice, f"no such tool; the bound tools are: {names}")
    return "required", chosen


def _named(choice: object) -> object:
    if not isinstance(choice, Mapping):
        return None
    inner = choice.get("function", choice)
    return inner.get("name") if isinstance(inner, Mapping) else None
