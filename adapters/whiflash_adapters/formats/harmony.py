"""The form of gpt-oss: messages to channels (OpenAI's "harmony" response format).

    <|channel|>analysis<|message|>I need to look it up.<|end|><|start|>assistant
    <|channel|>commentary to=functions.search <|constrain|>json<|message|>{"query": "x"}<|call|>

or, to the user, `<|channel|>final<|message|>...`. The prompt ends in `<|start|>assistant`, and
`<|call|>` ends the turn, so that a turn holds one call at most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import regex

from whiflash_adapters.formats.base import Ask, Call, Parser
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
from whiflash_adapters.formats.lark import word
from whiflash_adapters.formats.schemas import json_rule
from whiflash_adapters.formats.tools import Tool, name_of, parameters_of
from whiflash_adapters.text import overlap

_CHANNEL, _MESSAGE, _END = "<|channel|>", "<|message|>", "<|end|>"
_ANALYSIS, _FINAL = f"{_CHANNEL}analysis{_MESSAGE}", f"{_CHANNEL}final{_MESSAGE}"
_NEXT = f"{_END}<|start|>assistant"
_TO = regex.compile(r"to=functions\.([^\s<]+)")
_ENDS = (_END, "<|start|>", "<|call|>", "<|return|>", _CHANNEL)


class Harmony:
    """`CallFormat` of gpt-oss."""

    name = "harmony"
    think = (_ANALYSIS, _END)
    markers: Sequence[str] = (*_ENDS, _MESSAGE, "<|constrain|>")

    def write(self, calls: Sequence[Call]) -> str:
        return _NEXT.join(
            f"{_head(name)}{json.dumps(dict(arguments), ensure_ascii=False)}"
            for name, arguments in calls
        )

    def grammar(self, ask: Ask) -> str:
        analysis = f"think: {word(_ANALYSIS, ask.tokens)} TEXT {word(_NEXT, ask.tokens)}"
        if ask.reasoning:
            analysis = f"think: TEXT {word(_NEXT, ask.tokens)}"
        lines = [
            "%llguidance {}", f"start: {'think' if ask.reasoning else 'think*'} ({_ways(ask)})",
            analysis, "TEXT: /(.|\\n)*/",
        ]  # fmt: skip
        answer = f"final: {word(_FINAL, ask.tokens)} "
        if ask.final is not None:
            lines += [answer + "document", f"document: {json_rule(ask.final, lenient=False)}"]
        else:
            lines.append(answer + "TEXT")
        for i, tool in enumerate(ask.tools if ask.mode != "none" else ()):
            lines.append(f"call_{i}: {word(_head(name_of(tool)), ask.tokens)} args_{i}")
            lines.append(f"args_{i}: {json_rule(parameters_of(tool), lenient=not ask.strict)}")
        return "\n".join(lines)

    def parser(self, tools: Sequence[Tool], *, reasoning: bool = False) -> Parser:
        return _HarmonyParser(tools=bool(tools), reasoning=reasoning)


def _head(name: str) -> str:
    return f"{_CHANNEL}commentary to=functions.{name} <|constrain|>json{_MESSAGE}"


def _ways(ask: Ask) -> str:
    calls = [f"call_{i}" for i in range(len(ask.tools))]
    return " | ".join({"none": ["final"], "required": calls, "auto": ["final", *calls]}[ask.mode])


class _HarmonyParser:
    """One message after another: a header up to `<|message|>`, then its content."""

    def __init__(self, *, tools: bool, reasoning: bool) -> None:
        self._tools = tools
        self._buffer = ""
        self._out: list[Event] = []
        self._in_header, self._analysis = not reasoning, reasoning
        self._args: JsonScan | None = None  # of the open call

    def feed(self, text: str) -> list[Event]:
        self._buffer += text
        while self._buffer and (self._header() if self._in_header else self._content()):
            pass
        out, self._out = self._out, []
        return out

    def finish(self) -> list[Event]:
        if self._in_header:
            if self._tools and "to=functions." in self._buffer:
                self._out += [CallStart(""), CallBroken(self._buffer)]
            elif _CHANNEL not in self._buffer:  # an answer without any channel is just text
                self._told(self._buffer.removeprefix("<|start|>assistant"))
        else:
            self._told(self._buffer)
            self._close()
        self._buffer = ""
        out, self._out = self._out, []
        return out

    def _header(self) -> bool:
        header, found, rest = self._buffer.partition(_MESSAGE)
        if not found:
            return False
        self._buffer, self._in_header = rest, False
        self._analysis = f"{_CHANNEL}analysis" in header
        to = _TO.search(header)
        if to is not None and self._tools:
            self._args = JsonScan()
            self._out.append(CallStart(to.group(1)))
        return True

    def _content(self) -> bool:
        found = [at for at in map(self._buffer.find, _ENDS) if at >= 0]
        if found:
            at = min(found)
            self._told(self._buffer[:at])
            self._close()
            self._buffer = self._buffer[at:]
            for end in (_END, "<|call|>", "<|return|>"):
                self._buffer = self._buffer.removeprefix(end)
            self._in_header = True
            return True
        ready = len(self._buffer) - max(overlap(self._buffer, end) for end in _ENDS)
        self._told(self._buffer[:ready])
        self._buffer = self._buffer[ready:]
        return False

    def _told(self, text: str) -> None:
        if not text:
            return
        if self._args is None:
            self._out.append(ReasoningPiece(text) if self._analysis else TextPiece(text))
        elif self._args.state == "open":
            used = self._args.feed(text)
            self._out.append(CallArgs(text[:used]))
            if self._complete():
                self._out.append(CallEnd())

    def _complete(self) -> bool:
        return self._args is not None and self._args.state == "complete"

    def _close(self) -> None:
        if self._args is not None and not self._complete():
            self._out.append(CallBroken(self._args.poison("cut short")))
        self._args = None


HARMONY = Harmony()
