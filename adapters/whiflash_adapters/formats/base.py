"""What a format of tool calls is: one family of models' way to write calls and reasoning.

Each format is a module of this package with one object or class that does three things: it
writes calls (for prompts), forces them (a grammar), and reads them as they stream (a parser).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from whiflash_adapters.formats.events import Event
from whiflash_adapters.formats.tools import Tool, is_strict

ToolMode = Literal["auto", "required", "none"]
"""auto: text, or calls. required: calls, after reasoning if the model wants it. none: no call."""

Call = tuple[str, Mapping[str, object]]
"""A tool's name and its arguments."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a grammar is to allow.

    tools: those that may be called. parallel: whether more than one call may be made.
    reasoning: the prompt ends inside the reasoning. strict: refuse a tool's schema that cannot
    be followed to the letter, as a tool may ask for itself; otherwise what llguidance cannot
    express is let through, and LangChain validates the arguments again before the tool runs.
    final: JSON schema of the answer, if it is to be JSON; it is followed to the letter unless
    strict is False, which says that somebody validates the answer too.
    tokens: the added vocabulary. A marker found there is one token, never spelled out.
    """

    tools: Sequence[Tool] = ()
    mode: ToolMode = "auto"
    parallel: bool = True
    reasoning: bool = False
    strict: bool | None = None
    final: Mapping[str, object] | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)

    def lenient(self, tool: Tool) -> bool:
        """Whether what cannot be kept to of this tool's schema is let through."""
        return not (self.strict or is_strict(tool))


class Parser(Protocol):
    """Reads an answer as it streams.

    The events do not depend on how the text was cut into pieces, except that neighbouring
    pieces of one kind may be joined. A call that is malformed or cut short ends in `CallBroken`.
    """

    def feed(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]:
        """The text has ended: let go of what was held back, and break an open call."""
        ...


class CallFormat(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def think(self) -> tuple[str, str]:
        """What opens and what closes the reasoning."""
        ...

    @property
    def markers(self) -> Sequence[str]:
        """Control tokens that the parser reads: they must stay in the text."""
        ...

    @property
    def signposts(self) -> Sequence[str]:
        """What leads out of reasoning and text: the end of the one, and how a call begins."""
        ...

    def write(self, calls: Sequence[Call]) -> str:
        """Calls as the model itself would write them."""
        ...

    def grammar(self, ask: Ask) -> str:
        """A grammar of whole answers, in llguidance's dialect of Lark."""
        ...

    def parser(
        self, tools: Sequence[Tool], *, reasoning: bool = False, document: bool = False
    ) -> Parser:
        """tools: those on offer; without any no calls are looked for. reasoning: the prompt
        ends inside the reasoning. document: the answer is calls or one JSON document, so that
        what does not begin with a call has none."""
        ...
