"""Reads calls whose arguments stand in tags, one whole argument at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import regex

from whiflash_adapters.formats.events import CallArgs, CallBroken, CallEnd, CallStart
from whiflash_adapters.formats.prose_parser import ProseParser
from whiflash_adapters.formats.tools import Tool, name_of, parameters_of

START, END = "<tool_call>", "</tool_call>"
_HEAD = regex.compile(r"\s*<function=([^>\n]+)>\s*(?=<)")
_PARAMETER = regex.compile(r"<parameter=([^>\n]+)>\n?")
_VALUE_END = regex.compile(r"\n?</parameter>\s*(?=<)")
_TAIL = regex.compile(r"</function>\s*</tool_call>")


class QwenCoderParser(ProseParser):
    """call: before the function's name. parts: between arguments. value: inside of one."""

    def __init__(self, tools: Sequence[Tool], think: tuple[str, str], *, reasoning: bool) -> None:
        super().__init__(START if tools else "", think, reasoning=reasoning)
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
            self._buffer, self._state, self._trim = rest, "text", True
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
            self._buffer = self._buffer[part.end() :]
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
        self._state, self._trim = "text", True
        return True

    def _value(self) -> bool:
        end = _VALUE_END.search(self._buffer)
        if end is None:
            return False
        text = self._buffer[: end.start()]
        value = json.dumps(self._cast(text), ensure_ascii=False)
        lead = ", " if self._count else "{"
        self._out.append(CallArgs(f"{lead}{json.dumps(self._key, ensure_ascii=False)}: {value}"))
        self._buffer, self._state = self._buffer[end.end() :], "parts"
        self._count += 1
        return True

    def _cast(self, text: str) -> object:
        properties = self._schemas.get(self._tool, {}).get("properties")
        schema = properties.get(self._key) if isinstance(properties, Mapping) else None
        if isinstance(schema, Mapping):
            words = schema.get("enum")
            if schema.get("type") == "string" or (isinstance(words, list) and text in words):
                return text
        try:
            return json.loads(text)
        except ValueError:
            return text
