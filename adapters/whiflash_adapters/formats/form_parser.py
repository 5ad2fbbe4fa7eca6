"""Reads a `JsonForm` as it streams: prose, reasoning, and tool calls piece by piece."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from whiflash_adapters.formats.events import CallArgs, CallBroken, CallEnd, CallStart, Event
from whiflash_adapters.formats.json_scan import JsonScan, strict_json
from whiflash_adapters.formats.prose_parser import ProseParser

if TYPE_CHECKING:
    from whiflash_adapters.formats.form import JsonForm


# Stands before a broken call whose own words LangChain could complete to a whole one.
_NO_JSON = "<call> "
_KEYS = {"name", "arguments", "parameters", "id", "type"}


class FormParser(ProseParser):
    """`Parser` of one form. A call is finished only by the form's own tail.

    call: before the arguments. whole: a call in another order than the form's, read when its
    end is there. args, tail: in the arguments, and right behind them. skip: behind a broken call.
    """

    def __init__(
        self, form: JsonForm, tools: Collection[str], *, reasoning: bool = False,
        document: bool = False,
    ) -> None:  # fmt: skip
        """tools: names of those on offer. reasoning, document: as `CallFormat.parser` has them."""
        opener, silent = (form.opener, form.silent) if tools else ("", ())
        super().__init__(opener, form.think, silent, reasoning=reasoning, document=document)
        self._form, self._tools = form, tools
        self._bare = bool(tools) and not form.opener
        self._begun = form.opener or _NO_JSON  # what of the open call stood before the buffer
        self._args = JsonScan()

    def _begins(self, text: str, *, final: bool) -> bool | None:
        if not self._bare:
            return False
        head = self._form.head_pattern.match(text, partial=True)
        if head is None:
            return False
        if head.partial:
            return bool(text) if final else None  # cut short: told as a broken call
        # a document may look like a call
        return not self._document or self._name(head.group(1)) in self._tools

    def _call(self) -> bool:
        if self._state == "call":
            return self._head()
        if self._state == "args":
            return self._arguments()
        if self._state == "tail":
            return self._tail()
        return self._behind()

    def _cut_short(self) -> None:
        if self._state in ("call", "whole"):
            self._out += _whole(self._begun, self._buffer, "")
        elif self._state in ("args", "tail"):
            self._out.append(CallBroken(self._args.poison("cut short")))

    def _head(self) -> bool:
        head = self._form.head_pattern.match(self._buffer, partial=True)
        if head is None:
            self._state = "whole"
            return True
        if head.partial:
            return False
        self._out.append(CallStart(self._name(head.group(1))))
        self._buffer = self._buffer[head.end() :]
        self._state, self._args = "args", JsonScan()
        return True

    def _name(self, written: str) -> str:
        if not self._form.quoted:
            return written.strip()
        try:
            return str(json.loads(written))
        except ValueError:  # a bad escape; the agent will say that there is no such tool
            return written[1:-1]

    def _arguments(self) -> bool:
        used = self._args.feed(self._buffer)
        if used:
            self._out.append(CallArgs(self._buffer[:used]))
        self._buffer = self._buffer[used:]
        if self._args.state == "open":
            return False
        self._state = "tail"
        if self._args.state == "broken":
            self._break("malformed")
        elif not self._form.tail_pattern.pattern:  # nothing has to follow
            self._tail()
        return True

    def _tail(self) -> bool:
        tail = self._form.tail_pattern.match(self._buffer, partial=True)
        if tail is None:
            self._break("malformed")
            return True
        if tail.partial:
            return False
        self._out.append(CallEnd())
        self._buffer = self._buffer[tail.end() :]
        if tail.re.groups and tail.group(1) is not None:
            self._state, self._begun = "call", _NO_JSON
        else:
            self._go_back()
        return True

    def _break(self, why: str) -> None:
        self._out.append(CallBroken(self._args.poison(why)))
        self._state = "skip"

    def _behind(self) -> bool:
        """Find the place where a call that cannot be followed ends."""
        body, end, rest = self._buffer.partition(self._form.end) if self._form.end else ("",) * 3
        if not end:
            return False
        if self._state == "whole":
            self._out += _whole(self._begun, body, end)
        self._buffer = rest
        self._go_back()
        return True

    def _go_back(self) -> None:
        """To prose. Where calls have no opener, the next one may begin right here."""
        self._state, self._trim = ("start" if self._bare else self._before), True
        self._begun = self._form.opener or _NO_JSON


def _whole(begun: str, body: str, end: str) -> list[Event]:
    """A body that could not be streamed: other key order, a list of calls, or no call at all."""
    broken: list[Event] = [CallStart(""), CallBroken(begun + body + end)]
    if not end:  # cut short, whatever it looks like
        return broken
    try:
        value = strict_json(body)
    except ValueError:
        return broken
    events: list[Event] = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict) or not item.keys() <= _KEYS:
            return broken
        name, arguments = item.get("name"), item.get("arguments", item.get("parameters", {}))
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return broken
        text = json.dumps(arguments, ensure_ascii=False)
        events += [CallStart(name), CallArgs(text), CallEnd()]
    return events  # an empty list is how some models say that they call nothing
