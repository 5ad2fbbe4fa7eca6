"""Is a call right? References that list what they accept, compared as BFCL does.

BFCL's checker (github.com/ShishirPatil/gorilla) ignores case and the punctuation ``,./-_*^`` and
spaces in strings, takes 5 for 5.0, and lets optional arguments be left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whiflash_engine.training.gold import (
    Call,
    as_declared,
    gold_calls,
    properties_of,
    tool_name,
)
from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.rows import PromptRow


@dataclass(frozen=True)
class Accepted:
    """One gold call: for each argument the values that are right. "" among them: optional."""

    name: str
    arguments: Mapping[str, Sequence[JsonValue]]
    nested: bool
    """Objects inside the values list what they accept as well."""

    def fits(self, call: Call) -> bool:
        """Right tool, every argument right, none missing, none invented."""
        return call.name == self.name and _fits_all(call.arguments, self.arguments, self.nested)


def accepted_call(row: PromptRow, ref: JsonValue) -> Accepted | None:
    """The gold call of a row that wants exactly one; None for other rows."""
    calls = gold_calls(row, ref)
    if calls is None or len(calls) != 1 or not isinstance(ref, dict):
        return None
    (call,) = calls
    truth = ref.get("ground_truth")
    if row.source == "bfcl" and isinstance(truth, list) and isinstance(truth[0], dict):
        listed = truth[0][call.name]
        assert isinstance(listed, dict)
        (tool,) = (tool for tool in row.tools if tool_name(tool) == call.name)
        schemas = properties_of(tool)
        options = {
            key: [as_declared(one, schemas.get(key)) for one in value]
            for key, value in listed.items()
            if isinstance(value, list)
        }
        return Accepted(call.name, options, nested=True)
    return Accepted(call.name, {k: [v] for k, v in call.arguments.items()}, nested=False)


def _fits_all(
    given: Mapping[str, JsonValue], wanted: Mapping[str, Sequence[JsonValue]], nested: bool
) -> bool:
    return given.keys() <= wanted.keys() and all(
        any(_equal(given[key], option, nested) for option in options)
        if key in given
        else "" in options
        for key, options in wanted.items()
    )


def _equal(value: JsonValue, option: JsonValue, nested: bool) -> bool:
    if isinstance(value, str) and isinstance(option, str):
        return _plain(value) == _plain(option)
    if isinstance(value, bool) or isinstance(option, bool):
        return value is option
    if isinstance(value, list) and isinstance(option, list):
        return len(value) == len(option) and all(
            _equal(a, b, nested) for a, b in zip(value, option, strict=True)
        )
    if isinstance(value, dict) and isinstance(option, dict):
        lists = {k: v for k, v in option.items() if isinstance(v, list)}
        if nested and len(lists) == len(option):
            return _fits_all(value, lists, nested)
        return value.keys() == option.keys() and all(
            _equal(value[key], option[key], nested) for key in option
        )
    return value == option


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
