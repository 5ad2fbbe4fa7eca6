"""The form of gpt-oss: messages to channels (OpenAI's "harmony" response format).

    <|channel|>analysis<|message|>I need to look it up.<|end|><|start|>assistant
    <|channel|>commentary to=functions.search <|constrain|>json<|message|>{"query": "x"}<|call|>

or, to the user, `<|channel|>final<|message|>...`. The prompt ends in `<|start|>assistant`, and
`<|call|>` ends the turn, so that a turn holds one call at most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from whiflash_adapters.formats.base import Ask, Call, Parser
from whiflash_adapters.formats.harmony_parser import CHANNEL, END, ENDS, MESSAGE, HarmonyParser
from whiflash_adapters.formats.lark import Around, document, word
from whiflash_adapters.formats.schemas import json_rule
from whiflash_adapters.formats.tool_names import check_plain
from whiflash_adapters.formats.tools import Tool, name_of, parameters_of

_ANALYSIS, _FINAL = f"{CHANNEL}analysis{MESSAGE}", f"{CHANNEL}final{MESSAGE}"
_NEXT = f"{END}<|start|>assistant"


class Harmony:
    """`CallFormat` of gpt-oss."""

    name = "harmony"
    think = (_ANALYSIS, END)
    markers: Sequence[str] = (*ENDS, MESSAGE, "<|constrain|>")
    signposts: Sequence[str] = (_NEXT,)

    def write(self, calls: Sequence[Call]) -> str:
        return _NEXT.join(
            f"{_head(name)}{json.dumps(dict(arguments), ensure_ascii=False)}"
            for name, arguments in calls
        )

    def grammar(self, ask: Ask) -> str:
        check_plain(ask.tools, self.name)
        text = Around("", self.think, (*ENDS, MESSAGE)).text()
        analysis = f"think: {word(_ANALYSIS, ask.tokens)} TEXT {word(_NEXT, ask.tokens)}"
        if ask.reasoning:
            analysis = f"think: TEXT {word(_NEXT, ask.tokens)}"
        lines = [
            "%llguidance {}", f"start: {'think' if ask.reasoning else 'think*'} ({_ways(ask)})",
            analysis, text,
        ]  # fmt: skip
        answer = f"final: {word(_FINAL, ask.tokens)} "
        if ask.final is not None:
            lines += [answer + "document", document(ask.final, ask.strict)]
        else:
            lines.append(answer + "TEXT")
        for i, tool in enumerate(ask.tools if ask.mode != "none" else ()):
            lines.append(f"call_{i}: {word(_head(name_of(tool)), ask.tokens)} args_{i}")
            lines.append(f"args_{i}: {json_rule(parameters_of(tool), lenient=ask.lenient(tool))}")
        return "\n".join(lines)

    def parser(
        self, tools: Sequence[Tool], *, reasoning: bool = False, document: bool = False
    ) -> Parser:
        """document: of no consequence here, where channels tell calls from answers."""
        check_plain(tools, self.name)
        return HarmonyParser(tools=bool(tools), reasoning=reasoning)


def _head(name: str) -> str:
    return f"{CHANNEL}commentary to=functions.{name} <|constrain|>json{MESSAGE}"


def _ways(ask: Ask) -> str:
    calls = [f"call_{i}" for i in range(len(ask.tools))]
    return " | ".join({"none": ["final"], "required": calls, "auto": ["final", *calls]}[ask.mode])


HARMONY = Harmony()
