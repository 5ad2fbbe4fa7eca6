"""JSON schemas as a grammar gets them: bounded, closed, and spelled the way models spell JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from whiflash_engine.errors import ConfigError

# A string or list without a bound would let a small model fall into a loop inside a call.
MAX_STRING = 2000
MAX_ITEMS = 64

# Tight JSON, in the very spelling of `json.dumps`: fewer choices, so more tokens are forced
# by the grammar, and no endless whitespace.
_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_rule(schema: Mapping[str, object], *, lenient: bool) -> str:
    """The right-hand side of a rule for one JSON value. lenient: let through what llguidance
    cannot express, instead of refusing the schema. ConfigError where llguidance would follow a
    reference to the wrong place."""
    if not lenient and any(_identified(part) for part in schema.values()):
        raise ConfigError("schema", "$id", "references to inner identifiers are not followed")
    return f"%json {json.dumps(bounded(schema) | {'x-guidance': _OPTIONS | {'lenient': lenient}})}"


def _identified(node: object) -> bool:
    """Whether a part of a schema has an identifier of its own, which moves what "#" means."""
    if isinstance(node, Mapping):
        return isinstance(node.get("$id"), str) or any(map(_identified, node.values()))
    return isinstance(node, list) and any(map(_identified, node))


def bounded(schema: Mapping[str, object]) -> dict[str, object]:
    """The schema with bounds where it has none, and closed against invented keys."""
    closed = _walk(schema)
    assert isinstance(closed, dict)
    return closed


def _walk(node: object) -> object:
    if isinstance(node, list):
        return [_walk(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    out: dict[str, object] = {}
    for key, value in node.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, Mapping):
            out[key] = {name: _walk(inner) for name, inner in value.items()}
        elif key in ("items", "anyOf", "oneOf", "allOf", "prefixItems", "additionalProperties"):
            out[key] = _walk(value)
        else:  # enum, const, default, examples hold data, not schemas
            out[key] = value
    kind = out.get("type")
    if kind == "string" and not out.keys() & {"maxLength", "enum", "const", "pattern", "format"}:
        out["maxLength"] = MAX_STRING
    if kind == "array":
        out.setdefault("maxItems", MAX_ITEMS)
    if "properties" in out and "allOf" not in out:
        out.setdefault("additionalProperties", False)
    return out
