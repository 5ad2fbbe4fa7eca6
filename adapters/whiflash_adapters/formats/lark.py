"""Words of llguidance's dialect of Lark: markers as tokens, answers around calls.

Every format's grammar has the same shape, whatever its calls look like:

    auto        free text, then perhaps calls, then nothing more
    required    calls only (after reasoning, if the model wants it)
    none        free text in which no call begins
    a schema for the final answer: calls, or one JSON document (after reasoning, if it wants)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.schemas import json_rule
from whiflash_engine.errors import ConfigError


def word(text: str, tokens: Mapping[str, int]) -> str:
    """Fixed text; what is a token of the added vocabulary is written as that token."""
    found = [token for token in tokens if token in text]
    if not found:
        return json.dumps(text, ensure_ascii=False) if text else '""'
    longest_first = sorted(found, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    written = [
        f"<[{tokens[part]}]>" if part in tokens else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part
    ]
    return " ".join(written)


def json_words(text: str) -> str:
    """The beginning of a JSON object in the pieces that JSON rules are made of. llguidance's
    lexer never goes back, so that one long word could not stand beside another object."""
    parts = re.findall(r'"(?:[^"\\]|\\.)*"|: |, |[{}\[\]]|[^"{}\[\]:,]+', text)
    return " ".join(json.dumps(part, ensure_ascii=False) for part in parts)


@dataclass(frozen=True, slots=True)
class Around:
    """What stands around the calls of a format.

    trigger: what the first call begins with. think: what opens and closes the reasoning.
    read: other markers that the parser acts on. They may be tokens of their own, but the same
    words can be spelled out too, and the parser could not tell one from the other: text has
    neither. anywhere: calls may follow text; otherwise they begin the answer.
    """

    trigger: str
    think: tuple[str, str]
    read: tuple[str, ...] = ()
    anywhere: bool = True

    def text(self) -> str:
        """The rule `TEXT`: whatever holds no marker."""
        return f"TEXT: /(?s:.*)/{without(self.read)}"

    def thought(self, ask: Ask) -> list[str]:
        """The rule `think`: reasoning up to its closing marker, with no other marker in it."""
        opened, closed = "" if ask.reasoning else self.think[0], self.think[1]
        if closed in ask.tokens:
            inner = f"THOUGHT: /(?s:.*)/{without((*self.read, closed))}"
            ends = word(opened, ask.tokens), word(closed, ask.tokens)
            return [f"think: {ends[0]} THOUGHT {ends[1]} /\\n{{0,2}}/", inner]
        whole = f"/{in_regex(opened)}(.|\\n)*{in_regex(closed)}/"
        return [
            "think: thought /\\n{0,2}/",
            "thought[lazy]: THOUGHT",
            f"THOUGHT: {whole}{without(self.read)}",
        ]


def without(words: Iterable[str]) -> str:
    """To be put behind a terminal: none of these words occurs in it."""
    any_of = "|".join(in_regex(one) for one in dict.fromkeys(words) if one)
    return f" & ~/(?s:.*)({any_of})(?s:.*)/" if any_of else ""


def answer(ask: Ask, around: Around) -> list[str]:
    """The rules of everything before the first call; they use `calls`, which comes behind
    the trigger."""
    if ask.final is not None and ask.mode != "required":
        return [*_document(ask, around), document(ask.final, ask.strict)]
    if around.trigger in ask.tokens:
        return _behind_a_token(ask, around)
    if not around.anywhere:
        return _at_the_beginning(ask, around)
    return _behind_text(ask, around)


LET_PASS = "strict=False lets it pass, for a Pydantic class to validate the answer afterwards"


def document(final: Mapping[str, object], strict: bool | None) -> str:
    """The rule `document`: JSON of a schema, in all formats. strict: as in `Ask`."""
    try:
        return f"document: {json_rule(final, lenient=strict is False)}"
    except ConfigError as error:
        why = error.why if strict else f"{error.why}; {LET_PASS}"
        raise ConfigError(error.field, error.value, why) from error


def _behind_a_token(ask: Ask, around: Around) -> list[str]:
    first, begin = ("think" if ask.reasoning else "think?"), word(around.trigger, ask.tokens)
    start = {
        "none": f"start: {first} TEXT",
        "required": f"start: {first} /\\n{{0,2}}/ {begin} calls",
        "auto": f"start: {first} TEXT ({begin} calls)?",
    }
    return [start[ask.mode], *around.thought(ask), around.text()]


def _behind_text(ask: Ask, around: Around) -> list[str]:
    begin, opened = in_regex(around.trigger), in_regex(around.think[0])
    if ask.mode == "none":
        return ["start: TEXT", f"TEXT: /(?s:.*)/ & ~/(?s:.*){begin}(?s:.*)/"]
    # Both `lead` and `text` read on until the trigger is complete; being lazy, `lead` then wins.
    lead = f"lead[lazy]: /(.|\\n)*{begin}/"
    if ask.mode == "auto":
        return ["start: text | lead calls", "text: TEXT", "TEXT: /(.|\\n)*/", lead]
    if not ask.reasoning:
        lead = f"lead[lazy]: /({opened}(.|\\n)*)?{begin}/"
    return ["start: lead calls", lead]


def _at_the_beginning(ask: Ask, around: Around) -> list[str]:
    first, begin = ("think" if ask.reasoning else "think?"), json_words(around.trigger)
    start = {
        "none": f"start: {first} TEXT",
        "required": f"start: {first} {begin} calls",
        "auto": f"start: {first} (PROSE | {begin} calls)",
    }
    # An answer that begins like a call would be read as one, or could not be told from one.
    prose = "PROSE: /\\s*([^\\s\\{;](.|\\n)*)?/"
    return [start[ask.mode], *around.thought(ask), around.text(), prose]


def _document(ask: Ask, around: Around) -> list[str]:
    first, trigger = ("think" if ask.reasoning else "think?"), around.trigger
    begin = word(trigger, ask.tokens) if around.anywhere else json_words(trigger)
    calls = "" if ask.mode == "none" else f" | {begin} calls"
    return [f"start: {first} (document{calls})", *around.thought(ask)]


def in_regex(text: str) -> str:
    """Fixed text inside /.../."""
    return re.escape(text).replace("/", "\\/").replace("\\\n", "\\n")
