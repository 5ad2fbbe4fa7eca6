"""Names of tools, where a format writes them without quotes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from whiflash_adapters.formats.tools import Tool, name_of
from whiflash_engine.errors import ConfigError

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]+")


def check_plain(tools: Sequence[Tool], format_: str) -> None:
    """ConfigError for a name that a parser could not tell from the words around it, or would
    read as that of another tool. format_: the name of the format."""
    for name in map(name_of, tools):
        if not _PLAIN.fullmatch(name):
            why = f"{format_} writes names without quotes; only A-Z, a-z, 0-9, _, . and - can stand"
            raise ConfigError("tool name", name, why)
