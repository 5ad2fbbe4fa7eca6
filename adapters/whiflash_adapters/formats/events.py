"""What a parser of model text says: prose, reasoning, and tool calls piece by piece.

The same for every format of calls.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextPiece:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; the name is empty when the text was too broken to have one."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArgs:
    """The next piece of the arguments, as JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The open call is complete and its arguments are a JSON object."""


@dataclass(frozen=True, slots=True)
class CallBroken:
    """The open call is not to be executed.

    `text` goes behind the pieces so far. It makes them impossible to complete: LangChain
    closes open brackets of streamed arguments by itself, and would run half a call.
    """

    text: str


Event = TextPiece | ReasoningPiece | CallStart | CallArgs | CallEnd | CallBroken
