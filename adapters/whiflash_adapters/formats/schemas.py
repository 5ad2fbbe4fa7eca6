"""JSON schemas as a grammar gets them: closed, and spelled the way models spell JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from whiflash_adapters.formats.strings import exact
from whiflash_engine.errors import ConfigError

# Tight JSON, in the very spelling of `json.dumps`: fewer choices, so more tokens are forced
# by the grammar, and no endless whitespace.
_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_rule(schema: Mapping[str, object], *, lenient: bool) -> str:
    """The right-hand side of a rule for one JSON value. lenient: let through what llguidance
    cannot express, instead of refusing the schema. ConfigError where llguidance would follow a
    reference to the wrong place, and for contents of strings that no grammar can promise."""
    if not lenient and any(_identified(part) for part in schema.values()):
        raise ConfigError("schema", "$id", "references to inner identifiers are not followed")
    kept = tightened(schema, lenient=lenient) | {"x-guidance": _OPTIONS | {"lenient": lenient}}
    return f"%json {json.dumps(kept)}"


def _identified(node: object) -> bool:
    """Whether a part of a schema has an identifier of its own, which moves what "#" means."""
    if isinstance(node, Mapping):
        return isinstance(node.get("$id"), str) or any(map(_identified, node.values()))
    return isinstance(node, list) and any(map(_identified, node))


def tightened(schema: Mapping[str, object], *, lenient: bool = True) -> dict[str, object]:
    """The schema closed against invented keys, and with exact string formats (`strings`).

    Not closed: an object that other parts of the schema add to, such as a branch of an `allOf`
    or a base that is referred to beside properties.
    """
    found = _Walk(shared=_is_added_to(schema), lenient=lenient).node(schema, closed=True)
    assert isinstance(found, dict)
    return found


_COMPOSED = frozenset({"allOf", "anyOf", "oneOf", "$ref", "if", "not", "patternProperties"})


def _is_added_to(node: object) -> bool:
    """Whether a definition may be one of several parts of an object."""
    if isinstance(node, list):
        return any(map(_is_added_to, node))
    if not isinstance(node, Mapping):
        return False
    beside = "properties" in node and "$ref" in node
    return "allOf" in node or beside or any(map(_is_added_to, node.values()))


@dataclass(frozen=True, slots=True)
class _Walk:
    """shared: definitions are left open. lenient: what no grammar can promise passes."""

    shared: bool
    lenient: bool

    def node(self, node: object, *, closed: bool) -> object:
        """closed: this object may be closed."""
        if isinstance(node, list):
            return [self.node(item, closed=closed) for item in node]
        if not isinstance(node, Mapping):
            return node
        composed = "properties" in node and bool(node.keys() & _COMPOSED)
        own = closed and not composed and "allOf" not in node
        out: dict[str, object] = {}
        for key, value in node.items():
            if key in ("$defs", "definitions"):
                out[key] = self._each(value, closed=not self.shared)
            elif key in ("properties", "patternProperties"):
                out[key] = self._each(value, closed=True)
            elif key in ("items", "prefixItems", "additionalProperties"):
                out[key] = self.node(value, closed=True)
            elif key in ("anyOf", "oneOf", "allOf"):
                out[key] = self.node(value, closed=own)
            else:  # enum, const, default, examples hold data, not schemas
                out[key] = value
        if "properties" in out and own:
            out.setdefault("additionalProperties", False)
        return exact(out, lenient=self.lenient)

    def _each(self, named: object, *, closed: bool) -> object:
        if not isinstance(named, Mapping):
            return named
        return {name: self.node(one, closed=closed) for name, one in named.items()}
