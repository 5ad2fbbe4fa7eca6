"""Prose and reasoning around calls, for every format that marks them in running text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from whiflash_adapters.formats.events import Event, ReasoningPiece, TextPiece
from whiflash_adapters.text import overlap


class ProseParser(ABC):
    """`Parser` of all but the calls themselves, which a subclass reads from `_buffer`.

    States are words. Here: "start", nothing but blanks so far; "text" and "reasoning". All
    others belong to the subclass. A call begins in state "call", behind `opener`.
    """

    def __init__(
        self, opener: str, think: tuple[str, str], silent: Sequence[str] = (),
        *, reasoning: bool = False, document: bool = False,
    ) -> None:  # fmt: skip
        """opener: "" if no call can begin behind text, or none is looked for. silent: markers
        that mean nothing to a reader. reasoning: the text begins inside the reasoning.
        document: an answer that does not begin with a call has none."""
        self._opener, self._think, self._silent = opener, think, silent
        self._document = document
        self._before = "text"  # the state that the open call interrupted
        self._state = "reasoning" if reasoning else "start"
        self._buffer = ""
        self._trim = reasoning  # whitespace behind a marker belongs to the marker
        self._out: list[Event] = []

    def feed(self, text: str) -> list[Event]:
        self._buffer += text
        self._go_on()
        return self._take()

    def finish(self) -> list[Event]:
        if self._state == "start":
            self._start(final=True)
        self._go_on()
        if self._state in ("start", "text", "reasoning"):
            self._prose_out(self._buffer if not self._trim else self._buffer.lstrip())
        else:
            self._cut_short()
        self._buffer, self._state = "", "over"
        return self._take()

    @abstractmethod
    def _call(self) -> bool:
        """Do one thing with the buffer, in a state that is not prose's; False if it takes more."""

    @abstractmethod
    def _cut_short(self) -> None:
        """The text has ended in such a state."""

    def _begins(self, text: str, *, final: bool) -> bool | None:
        """Whether a text, blanks apart, begins with a call that has no opener; None if only
        more of it will tell. final: there is no more."""
        return False

    def _go_on(self) -> None:
        while self._buffer and self._step():
            pass

    def _take(self) -> list[Event]:
        out, self._out = self._out, []
        return out

    def _step(self) -> bool:
        if self._state == "start":
            return self._start()
        if self._state in ("text", "reasoning"):
            return self._prose()
        return self._state != "over" and self._call()

    def _start(self, *, final: bool = False) -> bool:
        seen, think = self._buffer.lstrip(), self._think[0]
        if seen.startswith(think):
            self._buffer = seen[len(think) :]
            self._state, self._trim = "reasoning", True
            return True
        if think.startswith(seen) and not final:
            return False
        if self._document and self._opener.startswith(seen) and not final:
            return False
        call = self._begins(seen, final=final)
        if call is None:
            return False
        if self._document and not call and not seen.startswith(self._opener or "\0"):
            self._opener, self._silent = "", ()
        self._state = "call" if call else "text"
        return True

    def _prose(self) -> bool:
        if self._trim:
            self._buffer = self._buffer.lstrip()
            self._trim = not self._buffer
        markers = [*self._silent, *([self._opener] if self._opener else ())]
        if self._state == "reasoning":
            markers.append(self._think[1])
        found = [(self._buffer.find(marker), marker) for marker in markers]
        at, marker = min(((i, m) for i, m in found if i >= 0), default=(-1, ""))
        if at >= 0:
            self._prose_out(self._buffer[:at].rstrip())
            self._buffer = self._buffer[at + len(marker) :]
            self._trim = marker != self._opener
            if marker == self._opener:
                self._state, self._before = "call", self._state
            elif marker not in self._silent:
                self._state = "start"
            return True
        ready = self._buffer
        if markers:  # a marker, or whitespace before one, may be about to complete
            ready = ready[: len(ready) - max(overlap(ready, marker) for marker in markers)]
            ready = ready.rstrip()
        self._prose_out(ready)
        self._buffer = self._buffer[len(ready) :]
        return False

    def _prose_out(self, text: str) -> None:
        if text:
            piece = ReasoningPiece if self._state == "reasoning" else TextPiece
            self._out.append(piece(text))
