"""Reads messages to channels, gpt-oss's form, as they stream."""

from __future__ import annotations

import regex

from whiflash_adapters.formats.events import (
    CallArgs,
    CallBroken,
    CallEnd,
    CallStart,
    Event,
    ReasoningPiece,
    TextPiece,
)
from whiflash_adapters.formats.json_scan import JsonScan
from whiflash_adapters.text import overlap

CHANNEL, MESSAGE, END = "<|channel|>", "<|message|>", "<|end|>"
ENDS = (END, "<|start|>", "<|call|>", "<|return|>", CHANNEL)
_TO = regex.compile(r"to=functions\.([^\s<]+)")


class HarmonyParser:
    """One message after another: a header up to `<|message|>`, then its content."""

    def __init__(self, *, tools: bool, reasoning: bool) -> None:
        self._tools = tools
        self._buffer = ""
        self._out: list[Event] = []
        self._in_header, self._analysis = not reasoning, reasoning
        self._marked = reasoning  # any marker has been seen
        self._args: JsonScan | None = None  # of the open call

    def feed(self, text: str) -> list[Event]:
        self._buffer += text
        while self._buffer and self._step():
            pass
        out, self._out = self._out, []
        return out

    def finish(self) -> list[Event]:
        if not self._in_header:
            self._told(self._buffer)
            self._close()
        elif self._tools and CHANNEL in self._buffer and "to=" in self._buffer:
            self._out += [CallStart(""), CallBroken(self._buffer)]
        elif not self._marked and CHANNEL not in self._buffer:  # no channels: just text
            self._told(self._buffer)
        self._buffer = ""
        out, self._out = self._out, []
        return out

    def _step(self) -> bool:
        if self._in_header:
            return self._header()
        if self._args is not None and self._args.state == "open":
            return self._arguments(self._args)
        return self._content()

    def _header(self) -> bool:
        header, found, rest = self._buffer.partition(MESSAGE)
        if not found:
            return False
        self._buffer, self._in_header, self._marked = rest, False, True
        self._analysis = f"{CHANNEL}analysis" in header
        to = _TO.search(header)
        if to is not None and self._tools:
            self._args = JsonScan()
            self._out.append(CallStart(to.group(1)))
        return True

    def _arguments(self, args: JsonScan) -> bool:
        """What stands in a string is no marker."""
        used = args.feed(self._buffer)
        if used:
            self._out.append(CallArgs(self._buffer[:used]))
        self._buffer = self._buffer[used:]
        if args.state == "complete":
            self._out.append(CallEnd())
        return args.state != "open"

    def _content(self) -> bool:
        found = [at for at in map(self._buffer.find, ENDS) if at >= 0]
        if found:
            at = min(found)
            self._told(self._buffer[:at])
            self._close()
            self._buffer, self._in_header = self._buffer[at:], True
            return True
        ready = len(self._buffer) - max(overlap(self._buffer, end) for end in ENDS)
        self._told(self._buffer[:ready])
        self._buffer = self._buffer[ready:]
        return False

    def _told(self, text: str) -> None:
        if text and self._args is None:
            self._out.append(ReasoningPiece(text) if self._analysis else TextPiece(text))

    def _close(self) -> None:
        if self._args is not None and self._args.state != "complete":
            self._out.append(CallBroken(self._args.poison("cut short")))
        self._args = None
