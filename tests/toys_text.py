"""Text that a model might write."""

from __future__ import annotations

from collections.abc import Mapping

from whiflash_adapters.formats.hermes import HERMES


def write_call(name: str, arguments: Mapping[str, object]) -> str:
    return HERMES.write([(name, arguments)])
