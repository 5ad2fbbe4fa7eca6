"""A format whose arguments are one JSON object between fixed words: most formats are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from whiflash_adapters.formats.base import Ask, Call, Parser
from whiflash_adapters.formats.form_grammar import form_grammar
from whiflash_adapters.formats.form_parser import FormParser
from whiflash_adapters.formats.tool_names import check_plain
from whiflash_adapters.formats.tools import Tool, name_of


@dataclass(frozen=True, slots=True)
class JsonForm:
    """`CallFormat` from its words. Two calls are written

        section  head NAME middle ARGUMENTS tail  between  head NAME middle ARGUMENTS tail  close

    and read, a little more liberally, by two patterns.

    quoted: the name is a JSON string. opener: what tells the parser, anywhere in the text, that
    a call begins; "" if calls can only stand at the very beginning of an answer.
    head_pattern: from behind the opener to before the arguments' "{"; its group 1 is the name
    as written. tail_pattern: what must follow the arguments; if its group 1 takes part, the
    next call follows without an opener. Both must not match less than what longer text would
    make them match, or the events would depend on how the text arrives. end: where reading
    goes on behind a broken call; "" if nothing marks that place. silent: markers that mean
    nothing to a reader.
    """

    name: str
    section: str
    head: str
    middle: str
    tail: str
    head_pattern: regex.Pattern[str]
    tail_pattern: regex.Pattern[str]
    opener: str
    between: str = ""
    close: str = ""
    end: str = ""
    quoted: bool = True
    think: tuple[str, str] = ("<think>", "</think>")
    silent: tuple[str, ...] = ()

    @property
    def markers(self) -> Sequence[str]:
        words = (self.section, self.head, self.middle, self.tail, self.between, self.close)
        return (*words, self.opener, self.end, *self.silent, *self.think)

    @property
    def signposts(self) -> Sequence[str]:
        return (self.think[1], self.opener or self.section or self.head)

    def named(self, name: str) -> str:
        """The name as it is written."""
        return json.dumps(name, ensure_ascii=False) if self.quoted else name

    def write(self, calls: Sequence[Call]) -> str:
        written = [
            f"{self.head}{self.named(name)}{self.middle}"
            f"{json.dumps(dict(arguments), ensure_ascii=False)}{self.tail}"
            for name, arguments in calls
        ]
        return f"{self.section}{self.between.join(written)}{self.close}" if written else ""

    def grammar(self, ask: Ask) -> str:
        self._check(ask.tools)
        return form_grammar(self, ask)

    def parser(
        self, tools: Sequence[Tool], *, reasoning: bool = False, document: bool = False
    ) -> Parser:
        self._check(tools)
        names = {name_of(tool) for tool in tools}
        return FormParser(self, names, reasoning=reasoning, document=document)

    def _check(self, tools: Sequence[Tool]) -> None:
        if not self.quoted:
            check_plain(tools, self.name)
