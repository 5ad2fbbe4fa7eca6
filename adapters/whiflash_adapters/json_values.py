"""What was loaded from YAML or made in Python, as the JSON that a prompt and a grammar hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from pydantic_core import to_jsonable_python

from whiflash_engine.errors import ConfigError

# Bounds that leave nothing out; JSON has no word for them.
_BOUNDLESS = {
    "maximum": math.inf, "exclusiveMaximum": math.inf,
    "minimum": -math.inf, "exclusiveMinimum": -math.inf,
}  # fmt: skip


def in_json(field: str, given: object) -> object:
    """The same with the words that JSON has: a date as its text, and null for what is infinite or
    no number, as JavaScript writes it; an infinite bound is left out. ConfigError for what has
    none."""
    try:
        return to_jsonable_python(_plain(given), inf_nan_mode="null")
    except (ValueError, RecursionError) as error:
        raise ConfigError(field, given, f"cannot be written as JSON: {error}") from error


def number(value: Decimal) -> int | float:
    """The nearest that JSON's readers know."""
    near = float(value)
    return int(value) if near.is_integer() else near


def _plain(node: object) -> object:
    """With numbers for decimals, which Pydantic would write as texts, and no kinds of mapping
    that it does not know."""
    if isinstance(node, Mapping):
        return {key: _plain(one) for key, one in node.items() if not _boundless(key, one)}
    if isinstance(node, list | tuple):
        return [_plain(one) for one in node]
    return number(node) if isinstance(node, Decimal) else node


def _boundless(key: object, value: object) -> bool:
    return isinstance(value, float | Decimal) and _BOUNDLESS.get(str(key)) == value
