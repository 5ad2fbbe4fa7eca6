"""Finds the end of a JSON object in text that is still arriving."""

from __future__ import annotations

import json
from typing import Literal


class JsonScan:
    """Finds where a JSON object ends, and whether it is one."""

    def __init__(self) -> None:
        self.state: Literal["open", "complete", "broken"] = "open"
        self._text = ""
        self._stack = ""
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """Read on; the number of characters that belong to the object."""
        for i, char in enumerate(text):
            self._read(char)
            if self.state != "open":
                self._text += text[: i + 1]
                if self.state == "complete" and not _is_object(self._text):
                    self.state = "broken"
                return i + 1
        self._text += text
        return len(text)

    def _read(self, char: str) -> None:
        if self._in_string:
            self._in_string = char != '"' or self._escaped
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._stack += char
        elif char in "}]":
            matches = self._stack[-1] + char in ("{}", "[]")
            self._stack = self._stack[:-1]
            if not matches:
                self.state = "broken"
            elif not self._stack:
                self.state = "complete"
        elif char == "<":  # not JSON: the closing tag stands where a value should
            self.state = "broken"

    def poison(self, why: str) -> str:
        """Text that no guess at the missing end can turn into valid JSON."""
        escape = "\\" if self._escaped else ""
        quote = '"' if self._in_string else ""
        wrong = "}" if self._stack.endswith("[") else "]"
        return f"{escape}{quote} <{why}> {wrong}"


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
