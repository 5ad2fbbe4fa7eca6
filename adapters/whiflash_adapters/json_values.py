"""What was loaded from YAML or made in Python, as the JSON that a prompt and a grammar hold."""

from __future__ import annotations

from pydantic_core import to_jsonable_python

from whiflash_engine.errors import ConfigError


def in_json(field: str, given: object) -> object:
    """The same with the words that JSON has: a date as its text, and null for what is infinite or
    no number, as JavaScript writes it. ConfigError for what has none."""
    try:
        return to_jsonable_python(given, inf_nan_mode="null")
    except ValueError as error:
        raise ConfigError(field, given, f"cannot be written as JSON: {error}") from error
