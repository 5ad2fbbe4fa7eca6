"""A Lark grammar, in llguidance's dialect, for an answer that may hold Hermes tool calls.

    auto        free text, then perhaps calls, then nothing more
    required    calls only (after reasoning, if the model wants it)
    none        free text in which no call begins

Every call names one of the tools and its arguments follow that tool's schema. The opening
tag is the trigger: before it anything goes, behind it only a call. With a schema for the final
answer there is no free text: calls, or one JSON document (after reasoning, if it wants).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from whiflash_adapters.formats.hermes_text import (
    END,
    START,
    THINK,
    THINK_END,
    Tool,
    function_of,
    name_of,
)

ToolMode = Literal["auto", "required", "none"]

# A string or list without a bound would let a small model fall into a loop inside a call.
MAX_STRING = 2000
MAX_ITEMS = 64

# Tight JSON, in the very spelling of `json.dumps`: fewer choices, so more tokens are forced
# by the grammar, and no endless whitespace.
_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar(
    tools: Sequence[Tool],
    mode: ToolMode,
    *,
    parallel: bool = True,
    tags_are_tokens: bool = False,
    reasoning: bool = False,
    strict: bool = False,
    final: Mapping[str, object] | None = None,
) -> str:
    """The grammar's text.

    parallel: whether more than one call may be made. tags_are_tokens: `<tool_call>` and its
    like are tokens of their own in the vocabulary (Qwen), not spelled out (SmolLM2).
    reasoning: the prompt ends inside `<think>`. final: JSON schema of the answer, if it is to
    be JSON. strict: refuse a tool's schema that cannot be followed to the letter; otherwise
    what llguidance cannot express is let through, and LangChain validates the arguments again
    before the tool runs. `final` is always followed to the letter.
    """
    start, end = (START, END) if tags_are_tokens else (_quoted(START), _quoted(END))
    openings = _openings(mode, tags_are_tokens, reasoning)
    if final is not None and mode != "required":
        openings = _final_openings(mode, tags_are_tokens, reasoning)
        openings.append(f"document: %json {_json(final, lenient=False)}")
    lines = ["%llguidance {}", *openings]
    if mode == "none":
        return "\n".join(lines)
    more = f'("\\n" {start} call)*' if parallel else ""
    lines.append(f"calls: call {more}")
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        head = f'\n{{"name": {json.dumps(name_of(tool), ensure_ascii=False)}, "arguments": '
        lines.append(f'call_{i}: {_quoted(head)} args_{i} "}}\\n" {end}')
        lines.append(f"args_{i}: %json {_json(_parameters(tool), lenient=not strict)}")
    return "\n".join(lines)


def _openings(mode: ToolMode, tags_are_tokens: bool, reasoning: bool) -> list[str]:
    """The rules before the first call, which end with the opening tag."""
    text = "TEXT: /(.|\\n)*/"
    if tags_are_tokens:  # plain text cannot hold such a token, so nothing needs excluding
        think = f"think: TEXT {THINK_END}" if reasoning else f"think: {THINK} TEXT {THINK_END}"
        first = "think" if reasoning else "think?"
        start = {
            "none": f"start: {first} TEXT",
            "required": f"start: {first} /\\n{{0,2}}/ {START} calls",
            "auto": f"start: {first} TEXT ({START} calls)?",
        }
        return [start[mode], think, text]
    if mode == "none":
        return ["start: TEXT", f"TEXT: /(?s:.*)/ & ~/(?s:.*){_in_regex(START)}(?s:.*)/"]
    # Both `lead` and `text` read on until the tag is complete; being lazy, `lead` then wins.
    lead = f"lead[lazy]: /(.|\\n)*{_in_regex(START)}/"
    if mode == "auto":
        return ["start: text | lead calls", "text: TEXT", text, lead]
    if not reasoning:
        lead = f"lead[lazy]: /({_in_regex(THINK)}(.|\\n)*)?{_in_regex(START)}/"
    return ["start: lead calls", lead]


def _final_openings(mode: ToolMode, tags_are_tokens: bool, reasoning: bool) -> list[str]:
    """As `_openings`, where the answer is one JSON document or begins with a call."""
    start = START if tags_are_tokens else _quoted(START)
    opened = "" if reasoning else THINK
    lines = [f"think: {opened} /(.|\\n)*/ {THINK_END} /\\n{{0,2}}/"]
    if not tags_are_tokens:  # plain text could hold such a tag, so the first one ends it
        thought = f"/{_in_regex(opened)}(.|\\n)*{_in_regex(THINK_END)}/"
        lines = ["think: thought /\\n{0,2}/", f"thought[lazy]: {thought}"]
    first = "think" if reasoning else "think?"
    rest = "document" if mode == "none" else f"(document | {start} calls)"
    return [f"start: {first} {rest}", *lines]


def _json(schema: Mapping[str, object], *, lenient: bool) -> str:
    return json.dumps(bounded(schema) | {"x-guidance": _OPTIONS | {"lenient": lenient}})


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


def _parameters(tool: Tool) -> Mapping[str, object]:
    parameters = function_of(tool).get("parameters")
    if isinstance(parameters, Mapping) and parameters:
        return parameters
    return {"type": "object", "properties": {}}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _in_regex(tag: str) -> str:
    return tag.replace("/", "\\/")
