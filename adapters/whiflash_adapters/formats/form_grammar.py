"""The grammar of a `JsonForm`: every call names one of the tools and follows its schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.lark import Around, answer, json_words, word
from whiflash_adapters.formats.schemas import json_rule
from whiflash_adapters.formats.tools import name_of, parameters_of

if TYPE_CHECKING:
    from whiflash_adapters.formats.form import JsonForm


def form_grammar(form: JsonForm, ask: Ask) -> str:
    """A grammar of whole answers. The first words of calls are the trigger: before them
    anything goes, behind them only a call."""
    begin = form.section + form.head
    trigger = form.opener if form.opener and begin.startswith(form.opener) else form.section
    trigger = trigger or form.head
    read = (form.opener, *form.silent)
    around = Around(trigger, form.think, read, anywhere=bool(form.opener))
    lines = ["%llguidance {}", *answer(ask, around)]
    if ask.mode == "none":
        return "\n".join(lines)
    more = f"({word(form.between + form.head, ask.tokens)} call)*" if ask.parallel else ""
    first = word(begin[len(trigger) :], ask.tokens)
    close = word(form.close, ask.tokens) if form.close else ""
    lines.append(f"calls: {first} call {more} {close}")
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(ask.tools))))
    for i, tool in enumerate(ask.tools):
        written = form.named(name_of(tool)) + form.middle
        head = word(written, ask.tokens) if form.opener else json_words(written)
        tail = word(form.tail, ask.tokens) if form.tail else ""
        lines.append(f"call_{i}: {head} args_{i} {tail}")
        lines.append(f"args_{i}: {json_rule(parameters_of(tool), lenient=ask.lenient(tool))}")
    return "\n".join(lines)
