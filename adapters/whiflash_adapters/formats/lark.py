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
from collections.abc import Mapping

from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.schemas import json_rule

_TEXT = "TEXT: /(.|\\n)*/"


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


def answer(ask: Ask, trigger: str, think: tuple[str, str], *, anywhere: bool = True) -> list[str]:
    """The rules of everything before the first call; they use `calls`, which comes behind
    the trigger. anywhere: calls may follow text; otherwise they begin the answer."""
    if ask.final is not None and ask.mode != "required":
        return [*_document(ask, trigger, think), f"document: {json_rule(ask.final, lenient=False)}"]
    if trigger in ask.tokens:
        return _behind_a_token(ask, trigger, think)
    if not anywhere:
        return _at_the_beginning(ask, trigger, think)
    return _behind_text(ask, trigger, think)


def _thought(ask: Ask, think: tuple[str, str]) -> list[str]:
    """The rule `think`: reasoning up to the first closing marker."""
    opened, closed = "" if ask.reasoning else think[0], think[1]
    if closed in ask.tokens:  # plain text cannot hold such a token, so it ends at the first one
        return [f"think: {word(opened, ask.tokens)} TEXT {word(closed, ask.tokens)}", _TEXT]
    return [
        "think: thought",
        f"thought[lazy]: /{in_regex(opened)}(.|\\n)*{in_regex(closed)}/",
    ]


def _behind_a_token(ask: Ask, trigger: str, think: tuple[str, str]) -> list[str]:
    first, begin = ("think" if ask.reasoning else "think?"), word(trigger, ask.tokens)
    start = {
        "none": f"start: {first} TEXT",
        "required": f"start: {first} /\\n{{0,2}}/ {begin} calls",
        "auto": f"start: {first} TEXT ({begin} calls)?",
    }
    thought = _thought(ask, think)
    return [start[ask.mode], *thought, *([] if _TEXT in thought else [_TEXT])]


def _behind_text(ask: Ask, trigger: str, think: tuple[str, str]) -> list[str]:
    begin, opened = in_regex(trigger), in_regex(think[0])
    if ask.mode == "none":
        return ["start: TEXT", f"TEXT: /(?s:.*)/ & ~/(?s:.*){begin}(?s:.*)/"]
    # Both `lead` and `text` read on until the trigger is complete; being lazy, `lead` then wins.
    lead = f"lead[lazy]: /(.|\\n)*{begin}/"
    if ask.mode == "auto":
        return ["start: text | lead calls", "text: TEXT", _TEXT, lead]
    if not ask.reasoning:
        lead = f"lead[lazy]: /({opened}(.|\\n)*)?{begin}/"
    return ["start: lead calls", lead]


def _at_the_beginning(ask: Ask, trigger: str, think: tuple[str, str]) -> list[str]:
    first, begin = ("think" if ask.reasoning else "think?"), json_words(trigger)
    start = {
        "none": f"start: {first} PROSE",
        "required": f"start: {first} /\\n{{0,2}}/ {begin} calls",
        "auto": f"start: {first} (PROSE | /\\n{{0,2}}/ {begin} calls)",
    }
    # An answer that begins with a bracket would be read as a call, or could not be told from one.
    prose = "PROSE: /\\s*([^\\s\\{](.|\\n)*)?/"
    return [start[ask.mode], *_thought(ask, think), prose]


def _document(ask: Ask, trigger: str, think: tuple[str, str]) -> list[str]:
    first = "think" if ask.reasoning else "think?"
    begin = json_words(trigger) if trigger.startswith("{") else word(trigger, ask.tokens)
    calls = "" if ask.mode == "none" else f" | {begin} calls"
    rules = _thought(ask, think)
    rules[0] += " /\\n{0,2}/"
    return [f"start: {first} (document{calls})", *rules]


def in_regex(text: str) -> str:
    """Fixed text inside /.../."""
    return re.escape(text).replace("/", "\\/").replace("\\\n", "\\n")
