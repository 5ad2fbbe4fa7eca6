"""Reads Hermes text as it streams: prose, reasoning, and tool calls piece by piece.

The events do not depend on how the text was cut into pieces, except that neighbouring
pieces of one kind may be joined. A call is finished only by its closing tag; one that is
malformed or cut short ends in `CallBroken`.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from whiflash_adapters.formats.events import (
    CallArgs,
    CallBroken,
    CallEnd,
    CallStart,
    Event,
    ReasoningPiece,
    TextPiece,
)
from whiflash_adapters.formats.hermes_text import END, START, THINK, THINK_END
from whiflash_adapters.formats.json_scan import JsonScan
from whiflash_adapters.text import overlap

# A name with "<" in it takes the slower way over `_whole`, so that the closing tag is
# found at the same place however the text is cut.
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\<]|\\[^<])*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_CLOSE = re.compile(r"\s*(\}\s*)?")
_State = Literal["start", "text", "reasoning", "body", "args", "close", "skip"]


class HermesParser:
    """Feed it text; it tells what the text says. `finish` once, at the end."""

    def __init__(self, *, tools: bool = True, reasoning: bool = False) -> None:
        """tools: whether calls are looked for. reasoning: the prompt ends inside `<think>`."""
        self._tools = tools
        self._state: _State = "reasoning" if reasoning else "start"
        self._buffer = ""
        self._trim = reasoning  # whitespace behind a tag belongs to the tag
        self._out: list[Event] = []
        self._args = JsonScan()

    def feed(self, text: str) -> list[Event]:
        self._buffer += text
        while self._step():
            pass
        return self._take()

    def finish(self) -> list[Event]:
        """The text has ended: let go of what was held back, and break an open call."""
        if self._state in ("start", "text", "reasoning"):
            self._prose_out(self._buffer if not self._trim else self._buffer.lstrip())
        elif self._state == "body":
            self._out += [CallStart(""), CallBroken(START + self._buffer)]
        elif self._state in ("args", "close"):
            self._out.append(CallBroken(self._args.poison("cut short")))
        self._buffer, self._state = "", "skip"
        return self._take()

    def _take(self) -> list[Event]:
        out, self._out = self._out, []
        return out

    def _step(self) -> bool:
        """Do one thing with the buffer; False when it takes more text to go on."""
        if not self._buffer:
            return False
        if self._state == "start":
            return self._start()
        if self._state in ("text", "reasoning"):
            return self._prose()
        if self._state == "body":
            return self._body()
        if self._state == "args":
            return self._arguments()
        if self._state == "close":
            return self._close()
        return self._skip()

    def _start(self) -> bool:
        seen = self._buffer.lstrip()
        if seen.startswith(THINK):
            self._buffer = seen[len(THINK) :]
            self._state, self._trim = "reasoning", True
            return True
        if THINK.startswith(seen):
            return False
        self._state = "text"
        return True

    def _prose(self) -> bool:
        if self._trim:
            self._buffer = self._buffer.lstrip()
            self._trim = not self._buffer
        markers = [START] if self._tools else []
        if self._state == "reasoning":
            markers.append(THINK_END)
        found = [(self._buffer.find(marker), marker) for marker in markers]
        at, marker = min(((i, m) for i, m in found if i >= 0), default=(-1, ""))
        if at >= 0:
            self._prose_out(self._buffer[:at].rstrip())
            self._buffer = self._buffer[at + len(marker) :]
            self._state, self._trim = ("body", False) if marker == START else ("text", True)
            return True
        ready = self._buffer
        if markers:  # a tag, or whitespace before one, may be about to complete
            ready = ready[: len(ready) - max(overlap(ready, marker) for marker in markers)]
            ready = ready.rstrip()
        self._prose_out(ready)
        self._buffer = self._buffer[len(ready) :]
        return False

    def _prose_out(self, text: str) -> None:
        if text:
            piece = ReasoningPiece if self._state == "reasoning" else TextPiece
            self._out.append(piece(text))

    def _body(self) -> bool:
        head = _HEAD.match(self._buffer)
        if head is not None:
            self._out.append(CallStart(_loads_name(head.group(1))))
            self._buffer = self._buffer[head.end() :]
            self._state, self._args = "args", JsonScan()
            return True
        body, end, rest = self._buffer.partition(END)
        if not end:
            return False
        self._out += _whole(body)
        self._buffer, self._state, self._trim = rest, "text", True
        return True

    def _arguments(self) -> bool:
        used = self._args.feed(self._buffer)
        self._out.append(CallArgs(self._buffer[:used]))
        self._buffer = self._buffer[used:]
        if self._args.state == "open":
            return False
        self._state = "close"
        if self._args.state == "broken":
            self._break("malformed")
        return True

    def _close(self) -> bool:
        seen = _CLOSE.match(self._buffer)
        assert seen is not None
        rest = self._buffer[seen.end() :]
        if seen.group(1) and rest.startswith(END):
            self._out.append(CallEnd())
            self._buffer = rest[len(END) :]
            self._state, self._trim = "text", True
            return True
        if not rest or (seen.group(1) and END.startswith(rest)):
            return False
        self._break("malformed")
        return True

    def _break(self, why: str) -> None:
        self._out.append(CallBroken(self._args.poison(why)))
        self._state = "skip"

    def _skip(self) -> bool:
        _, end, rest = self._buffer.partition(END)
        if not end:
            return False
        self._buffer, self._state, self._trim = rest, "text", True
        return True


def parse(text: str) -> list[Event]:
    """The events of a whole text."""
    parser = HermesParser()
    return parser.feed(text) + parser.finish()


def _whole(body: str) -> list[Event]:
    """A body that could not be streamed: other key order, a list of calls, or no call at all."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    events: list[Event] = []
    for item in value if isinstance(value, list) else [value]:
        name = item.get("name") if isinstance(item, dict) else None
        arguments = item.get("arguments", item.get("parameters", {})) if name else None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return [CallStart(""), CallBroken(START + body + END)]
        text = json.dumps(arguments, ensure_ascii=False)
        events += [CallStart(name), CallArgs(text), CallEnd()]
    return events or [CallStart(""), CallBroken(START + body + END)]


def _loads_name(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:  # a bad escape; the agent will say that there is no such tool
        return quoted[1:-1]
