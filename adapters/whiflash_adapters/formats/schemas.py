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
    """The schema with bounds where it has none, and closed against invented keys.

    Not closed: an object that other parts of the schema add to, such as a branch of an `allOf`
    or a base that is referred to beside properties.
    """
    found = _walk(schema, shared=_is_added_to(schema), closed=True)
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


def _walk(node: object, *, shared: bool, closed: bool) -> object:
    """shared: definitions are left open. closed: this object may be closed."""
    if isinstance(node, list):
        return [_walk(item, shared=shared, closed=closed) for item in node]
    if not isinstance(node, Mapping):
        return node
    own = closed and not ("properties" in node and node.keys() & _COMPOSED) and "allOf" not in node
    out: dict[str, object] = {}
    for key, value in node.items():
        if key in ("$defs", "definitions") and isinstance(value, Mapping):
            out[key] = {k: _walk(v, shared=shared, closed=not shared) for k, v in value.items()}
        elif key == "properties" and isinstance(value, Mapping):
            out[key] = {k: _walk(v, shared=shared, closed=True) for k, v in value.items()}
        elif key in ("items", "prefixItems", "additionalProperties"):
            out[key] = _walk(value, shared=shared, closed=True)
        elif key in ("anyOf", "oneOf", "allOf"):
            out[key] = _walk(value, shared=shared, closed=own)
        else:  # enum, const, default, examples hold data, not schemas
            out[key] = value
    kinds = out.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and not out.keys() & {"maxLength", "enum", "const", "pattern", "format"}:
        out["maxLength"] = max(MAX_STRING, _least(out, "minLength"))
    if "array" in kinds and "maxItems" not in out:
        out["maxItems"] = max(MAX_ITEMS, _least(out, "minItems"))
    if "properties" in out and own:
        out.setdefault("additionalProperties", False)
    return out


def _least(schema: Mapping[str, object], key: str) -> int:
    value = schema.get(key)
    return value if isinstance(value, int) else 0
