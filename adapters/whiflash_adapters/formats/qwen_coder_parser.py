"""Reads calls whose arguments stand in tags, one whole argument at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import regex

from whiflash_adapters.formats.events import CallArgs, CallBroken, CallEnd, CallStart
from whiflash_adapters.formats.json_scan import strict_json
from whiflash_adapters.formats.prose_parser import ProseParser
from whiflash_adapters.formats.tools import Tool, name_of, parameters_of

START, END = "<tool_call>", "</tool_call>"
_HEAD = regex.compile(r"\s*<function=([^>\n]+)>\s*(?=<)")
_PARAMETER = regex.compile(r"<parameter=([^>\n]+)>\n?")
VALUE_END = "\n</parameter>\n"
_TAIL = regex.compile(r"</function>\s*</tool_call>")


def resolved(schema: object, root: Mapping[str, object]) -> tuple[Mapping[str, object], bool]:
    """A schema behind a local reference, its null apart: without it, and whether it has one."""
    if not isinstance(schema, Mapping):
        return {}, False
    reference, ways = schema.get("$ref"), schema.get("anyOf")
    if isinstance(reference, str) and reference.startswith("#/"):
        found: object = root
        for key in reference[2:].split("/"):
            found = found.get(key) if isinstance(found, Mapping) else None
        return resolved(found, root)
    if isinstance(ways, list):
        others = [way for way in ways if way != {"type": "null"}]
        if len(others) == 1:
            inner, nullable = resolved(others[0], root)
            return inner, nullable or len(ways) > 1
    return schema, False


def words_of(schema: Mapping[str, object]) -> list[str]:
    """The strings that it consists of; none if it has others, or other values."""
    words = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(words, list):
        return []
    found = [word for word in words if isinstance(word, str)]
    return found if len(found) == len(words) else []


def bare(schema: Mapping[str, object]) -> bool:
    """Whether its values are strings, which stand without quotes."""
    return schema.get("type") == "string" and "const" not in schema and "enum" not in schema


class QwenCoderParser(ProseParser):
    """call: before the function's name. parts: between arguments. value: inside of one."""

    def __init__(
        self, tools: Sequence[Tool], think: tuple[str, str], *, reasoning: bool, document: bool
    ) -> None:
        opener = START if tools else ""
        super().__init__(opener, think, reasoning=reasoning, document=document)
        self._schemas = {name_of(tool): parameters_of(tool) for tool in tools}
        self._tool = self._key = ""
        self._count = 0

    def _call(self) -> bool:
        if self._state == "call":
            return self._head()
        if self._state == "parts":
            return self._parts()
        if self._state == "value":
            return self._value()
        _, end, rest = self._buffer.partition(END)
        if end:
            self._buffer, self._state, self._trim = rest, self._before, True
        return bool(end)

    def _cut_short(self) -> None:
        if self._state == "call":
            self._out += [CallStart(""), CallBroken(START + self._buffer)]
        elif self._state != "skip":
            self._out.append(CallBroken(" <cut short> ]"))

    def _head(self) -> bool:
        head = _HEAD.match(self._buffer, partial=True)
        if head is None:
            self._out += [CallStart(""), CallBroken(START + "<malformed>")]
            self._state = "skip"
            return True
        if head.partial:
            return False
        self._tool, self._count, self._state = head.group(1), 0, "parts"
        self._out.append(CallStart(self._tool))
        self._buffer = self._buffer[head.end() :]
        return True

    def _parts(self) -> bool:
        part = _PARAMETER.match(self._buffer, partial=True)
        if part is not None and (part.partial or part.end() == len(self._buffer)):
            return False  # the line break behind the tag may be still to come
        if part is not None:
            self._key, self._state = part.group(1), "value"
            self._buffer = "\n" + self._buffer[part.end() :]  # so that an empty value ends too
            return True
        tail = _TAIL.match(self._buffer, partial=True)
        if tail is None:
            self._out.append(CallBroken(" <malformed> ]"))
            self._state = "skip"
            return True
        if tail.partial:
            return False
        self._out += [CallArgs("}" if self._count else "{}"), CallEnd()]
        self._buffer = self._buffer[tail.end() :]
        self._state, self._trim = self._before, True
        return True

    def _value(self) -> bool:
        text, end, rest = self._buffer.partition(VALUE_END)
        if not end:
            return False
        value = json.dumps(self._cast(text[1:]), ensure_ascii=False)
        lead = ", " if self._count else "{"
        self._out.append(CallArgs(f"{lead}{json.dumps(self._key, ensure_ascii=False)}: {value}"))
        self._buffer, self._state = rest, "parts"
        self._count += 1
        return True

    def _cast(self, text: str) -> object:
        root = self._schemas.get(self._tool, {})
        properties = root.get("properties")
        inner = properties.get(self._key) if isinstance(properties, Mapping) else None
        schema, nullable = resolved(inner, root)
        if text in words_of(schema):
            return text
        if nullable and text == "null":
            return None
        if bare(schema):
            return text
        try:
            return strict_json(text)
        except ValueError:
            return text
