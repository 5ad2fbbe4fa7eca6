"""The form of Qwen3-Coder and Qwen3.5: one tag per argument, strings without quotes.

    <tool_call>
    <function=search>
    <parameter=query>
    speculative decoding
    </parameter>
    <parameter=limit>
    3
    </parameter>
    </function>
    </tool_call>

What a value is follows from the tool's schema: strings are taken as they stand, everything else
is JSON, and `null` is null where the schema has it. A value cannot contain a line that is
`</parameter>`; where that follows the opening line at once, the value is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from whiflash_adapters.formats.base import Ask, Call, Parser
from whiflash_adapters.formats.lark import Around, answer, in_regex, word
from whiflash_adapters.formats.qwen_coder_parser import (
    END,
    START,
    VALUE_END,
    QwenCoderParser,
    bare,
    resolved,
    words_of,
)
from whiflash_adapters.formats.schemas import json_rule
from whiflash_adapters.formats.tool_names import check_plain
from whiflash_adapters.formats.tools import Tool, name_of, parameters_of
from whiflash_engine.errors import ConfigError


class QwenCoder:
    """`CallFormat` of these models."""

    name = "qwen-coder"
    think = ("<think>", "</think>")
    markers: Sequence[str] = (START, END, *think)
    signposts: Sequence[str] = (think[1], START)

    def write(self, calls: Sequence[Call]) -> str:
        return "\n".join(_written(name, arguments) for name, arguments in calls)

    def grammar(self, ask: Ask) -> str:
        """Arguments come in the schema's order. With `strict` a string whose schema asks for a
        pattern or a format is refused: nothing here could hold it to that."""
        check_plain(ask.tools, self.name)
        lines = ["%llguidance {}", *answer(ask, Around(START, self.think, (START,)))]
        if ask.mode == "none":
            return "\n".join(lines)
        between = word("\n" + START, ask.tokens)
        lines.append(f"calls: call ({between} call)*" if ask.parallel else "calls: call")
        lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(ask.tools))))
        for i, tool in enumerate(ask.tools):
            lines += _tool_rules(f"{i}", tool, ask)
        return "\n".join(lines)

    def parser(
        self, tools: Sequence[Tool], *, reasoning: bool = False, document: bool = False
    ) -> Parser:
        check_plain(tools, self.name)
        return QwenCoderParser(tools, self.think, reasoning=reasoning, document=document)


def _written(name: str, arguments: Mapping[str, object]) -> str:
    values = [
        f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}{VALUE_END}"
        for key, value in arguments.items()
    ]
    return f"{START}\n<function={name}>\n{''.join(values)}</function>\n{END}"


def _tool_rules(i: str, tool: Tool, ask: Ask) -> list[str]:
    schema = parameters_of(tool)
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping):
        if schema.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
            raise ConfigError(name_of(tool), sorted(schema), "arguments need plain properties here")
        properties = {}
    parts, rules = [], []
    for n, (key, inner) in enumerate(properties.items()):
        if ">" in key or "\n" in key:
            raise ConfigError(name_of(tool), key, "no argument can have such a name here")
        optional = "" if isinstance(required, list) and key in required else "?"
        parts.append(f"part_{i}_{n}{optional}")
        value, *more = _value(f"{i}_{n}", key, inner, tool, ask)
        opening = word(f"<parameter={key}>\n", ask.tokens)
        rules += [f"part_{i}_{n}: {opening} {value}", *more]
    head, tail = f"\n<function={name_of(tool)}>\n", f"</function>\n{END}"
    body = " ".join([word(head, ask.tokens), *parts, word(tail, ask.tokens)])
    return [f"call_{i}: {body}", *rules]


def _value(i: str, key: str, inner: object, tool: Tool, ask: Ask) -> list[str]:
    """What stands in part i behind its opening line, and the rules that this needs."""
    root, lenient = parameters_of(tool), ask.lenient(tool)
    (schema, nullable), close = resolved(inner, root), word(VALUE_END, ask.tokens)
    if words := words_of(schema):
        every = [*words, "null"] if nullable else words
        return [f"({' | '.join(word(one, ask.tokens) for one in every)}) {close}"]
    if bare(schema):
        beyond = [kind for kind in ("pattern", "format") if kind in schema]
        if beyond and not lenient:
            path = f"{name_of(tool)}.{key}"
            raise ConfigError(path, beyond[0], "cannot be kept to where strings have no quotes")
        return [f"text_{i}", f"text_{i}[lazy]: TEXT_{i}", f"TEXT_{i}: {_text(schema, nullable)}"]
    either = {"anyOf": [schema, {"type": "null"}]} if nullable else schema
    shared = {kind: root[kind] for kind in ("$defs", "definitions") if kind in root}
    rule = json_rule({**either, **shared}, lenient=lenient)
    return [f"json_{i} {close}", f"json_{i}: {rule}"]


def _text(schema: Mapping[str, object], nullable: bool) -> str:
    """A bare string up to the end of its closing line, for a lazy rule: the first that fits."""
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    ways = [f"(.|\\n){{{least},{most}}}\\n", *["null\\n"] * nullable, *[""] * (least == 0)]
    closed = in_regex(VALUE_END.lstrip())
    # A string that is not long enough yet must not go on behind what the parser takes for its end.
    once = f" & ~/((.|\\n)*\\n)?{closed}(.|\\n)+/" if least else ""
    return f"/({'|'.join(ways)}){closed}/{once}"


QWEN_CODER = QwenCoder()
