"""What `tool_choice` means, in all the forms that LangChain, OpenAI and Anthropic allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whiflash_adapters.formats.base import ToolMode
from whiflash_adapters.formats.tools import Tool, name_of
from whiflash_engine.errors import ConfigError

ToolChoice = str | bool | Mapping[str, object] | None

_WORDS = ("auto", "any", "required", "none")


def resolve(tools: Sequence[Tool], choice: ToolChoice) -> tuple[ToolMode, Sequence[Tool]]:
    """The mode, and the tools that may be called."""
    word = _word(choice)
    if word is None or word is False or word == "auto":
        return ("auto" if tools else "none"), tools
    if word == "none":
        return "none", ()
    if word is True or word in ("any", "required"):
        if not tools:
            raise ConfigError("tool_choice", choice, "there are no tools to choose from")
        return "required", tools
    name = word if isinstance(word, str) else _named(word)
    chosen = [tool for tool in tools if name_of(tool) == name]
    if not chosen:
        names = ", ".join(name_of(tool) for tool in tools) or "none"
        raise ConfigError("tool_choice", choice, f"no such tool; the bound tools are: {names}")
    return "required", chosen


def _word(choice: ToolChoice) -> ToolChoice:
    """Anthropic says {"type": "any"} for "any"; whatever else is an object names a tool."""
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "allowed_tools":
        raise ConfigError("tool_choice", choice, "is not supported; give the allowed tools alone")
    return kind if isinstance(kind, str) and kind in _WORDS else choice


def _named(choice: object) -> object:
    if not isinstance(choice, Mapping):
        return None
    inner = choice.get("function", choice)
    return inner.get("name") if isinstance(inner, Mapping) else None
