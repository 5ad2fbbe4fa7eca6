"""The Hermes form of tool calls, all of it: what it looks like, its grammar, its parser."""

from __future__ import annotations

from whiflash_adapters.formats.hermes_grammar import ToolMode, grammar
from whiflash_adapters.formats.hermes_parser import HermesParser, parse
from whiflash_adapters.formats.hermes_text import END, START, Tool, system_block, write_call

__all__ = [
    "END",
    "START",
    "HermesParser",
    "Tool",
    "ToolMode",
    "grammar",
    "parse",
    "system_block",
    "write_call",
]
