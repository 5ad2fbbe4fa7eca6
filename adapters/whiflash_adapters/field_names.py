"""The names that a chat model is built with: fields, their other names, or a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from whiflash_engine.errors import ConfigError

# LangChain's standard parameters for models behind a server, which code that changes its model
# goes on giving to each. There is no server here, and whoever wants a stream asks for one.
_OF_SERVERS = frozenset({
    "api_key", "base_url", "max_retries", "stream_usage", "streaming", "timeout",
})  # fmt: skip


def refuse_unknown(given: Mapping[str, object], fields: Mapping[str, FieldInfo]) -> None:
    """ConfigError for all names that would have no effect, with what was probably meant."""
    known = {alias: name for name, field in fields.items() for alias in _names(name, field)}
    unknown = [name for name in given if name not in known and name not in _OF_SERVERS]
    if unknown:
        hints = ", ".join(name + _meant(name, fields) for name in unknown)
        raise ConfigError(unknown[0], given[unknown[0]], f"no such field: {hints}")
    for alias, name in known.items():
        if alias != name and alias in given and name in given:
            raise ConfigError(alias, given[alias], f"is {name}, which is given too")


def _names(name: str, field: FieldInfo) -> set[str]:
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return {name, *(choice for choice in choices if isinstance(choice, str))}


def _meant(name: str, fields: Mapping[str, FieldInfo]) -> str:
    return "".join(f" (did you mean {near}?)" for near in get_close_matches(name, fields, 1))
