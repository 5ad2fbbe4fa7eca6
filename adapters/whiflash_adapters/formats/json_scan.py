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
            if char == "<" and not self._in_string:  # a marker stands where a value should
                self._text += text[:i]
                self.state = "broken"
                return i
            self._read(char)
            if self.state != "open":
                self._text += text[: i + 1]
                if self.state == "complete" and not is_object(self._text):
                    self.state = "broken"
                return i + 1
        self._text += text
        return len(text)

    def _read(self, char: str) -> None:
        if not self._stack:  # an object begins with its bracket
            self._stack = "{" if char == "{" else ""
            self.state = "open" if self._stack or char.isspace() else "broken"
        elif self._in_string:
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

    def poison(self, why: str) -> str:
        """Text that no guess at the missing end can turn into valid JSON."""
        escape = "\\" if self._escaped else ""
        quote = '"' if self._in_string else ""
        wrong = "}" if self._stack.endswith("[") else "]"
        return f"{escape}{quote} <{why}> {wrong}"


def strict_json(text: str) -> object:
    """The value of a JSON text; ValueError if it is none, too deep, or holds NaN and its like,
    which Python would let pass."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def is_object(text: str) -> bool:
    try:
        return isinstance(strict_json(text), dict)
    except ValueError:
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
