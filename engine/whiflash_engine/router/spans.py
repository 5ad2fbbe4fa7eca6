"""What kind of text the next token lies in, from the bytes as they stream.

One state per byte offset, so that token boundaries cannot matter; one remembered state per
token, so that rollback is exact. A span lasts from the byte after its opening marker to the
last byte of the closing one.

    tool_call   <tool_call> ... </tool_call>
    reasoning   <think> ... </think>
    json        a line that begins with ```json up to a line that begins with ```; a JSON
                object or array that opens a line, until its brackets balance or it turns out
                not to be JSON
    text        everything else
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from whiflash_engine.config import Span

_OPENERS: Final[tuple[tuple[bytes, Span], ...]] = (
    (b"<tool_call>", "tool_call"),
    (b"<think>", "reasoning"),
    (b"\n```json", "json"),
)
_CLOSERS: Final = {"tool_call": b"</tool_call>", "reasoning": b"</think>", "json": b"\n```"}
_TAIL: Final = len(b"</tool_call>") - 1

_BRACKETS: Final = {ord("{"): b"}", ord("["): b"]"}
_BLANK: Final = frozenset(b" \t\r\n")
# Besides brackets and strings JSON has blanks, separators, numbers and true, false, null.
_PLAIN: Final = frozenset(b" \t\r\n,:+-.0123456789eEtrufalsn")
# What may follow an opening bracket, by its closer: "{x}" and "[see below]" are prose.
_FIRST: Final = {
    ord("}"): frozenset(b' \t\r\n"}'),
    ord("]"): frozenset(b' \t\r\n"{[]-0123456789tfn'),
}
_QUOTE, _BACKSLASH, _NEWLINE, _SPACE = b'"\\\n '


class _State(NamedTuple):
    """After some number of bytes.

    span: of the next byte.
    closers: what closes the JSON value in progress, innermost last; empty in a fence.
    fresh: its innermost bracket has just been opened.
    tail: the last bytes, enough to recognise a marker.
    blank: nothing but blanks since the line began.
    """

    span: Span = "text"
    closers: bytes = b""
    in_string: bool = False
    escaped: bool = False
    fresh: bool = False
    tail: bytes = b"\n"
    blank: bool = True


def _step(state: _State, byte: int) -> _State:
    seen = state.tail + bytes((byte,))
    tail = seen[-_TAIL:]
    blank = byte == _NEWLINE or (state.blank and byte in _BLANK)
    if state.closers:
        return _in_json(state, byte, tail, blank)
    if state.span != "text":
        if seen.endswith(_CLOSERS[state.span]):
            # What follows begins afresh, like a message.
            return _State()
        return _State(state.span, tail=tail, blank=blank)
    for marker, span in _OPENERS:
        if seen.endswith(marker):
            return _State(span, tail=b"", blank=False)
    if state.blank and byte in _BRACKETS:
        return _State("json", _BRACKETS[byte], fresh=True, tail=tail, blank=False)
    return _State(tail=tail, blank=blank)


def _in_json(state: _State, byte: int, tail: bytes, blank: bool) -> _State:
    closers = state.closers
    if state.in_string:
        if byte >= _SPACE:
            escaped = byte == _BACKSLASH and not state.escaped
            in_string = byte != _QUOTE or state.escaped
            return _State("json", closers, in_string, escaped, False, tail, blank)
    elif state.fresh and byte not in _FIRST[closers[-1]]:
        pass
    elif byte == _QUOTE:
        return _State("json", closers, in_string=True, tail=tail, blank=blank)
    elif byte in _BRACKETS:
        return _State("json", closers + _BRACKETS[byte], fresh=True, tail=tail, blank=blank)
    elif byte == closers[-1]:
        rest = closers[:-1]
        return _State("json" if rest else "text", rest, tail=tail, blank=blank)
    elif byte in _PLAIN:
        fresh = state.fresh and byte in _BLANK
        return _State("json", closers, fresh=fresh, tail=tail, blank=blank)
    # Not JSON after all: the byte is text's.
    return _step(_State(tail=state.tail, blank=state.blank), byte)


class SpanDetector:
    """Follows committed tokens; `span` is where the next one lies."""

    def __init__(self, token_bytes: Callable[[int], bytes], initial: Span = "text") -> None:
        """token_bytes: the bytes a token adds to the text; special tokens as their text.

        initial: the span that the prompt leaves open, or that a grammar makes of the whole.
        It ends at its closing marker, for json a closing fence: a grammar for JSON alone
        never produces one, and the whole stays json.
        """
        self._token_bytes = token_bytes
        start = _State() if initial == "text" else _State(initial, tail=b"", blank=False)
        self._states = [start]
        self._since = [0]

    @property
    def span(self) -> Span:
        return self._states[-1].span

    @property
    def since(self) -> int:
        """For how many tokens the span has lasted."""
        return self._since[-1]

    @property
    def length(self) -> int:
        """Tokens followed so far."""
        return len(self._states) - 1

    def advance(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            before = state = self._states[-1]
            for byte in self._token_bytes(token):
                state = _step(state, byte)
            self._states.append(state)
            self._since.append(self._since[-1] + 1 if state.span == before.span else 0)

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back."""
        if not 0 <= count <= self.length:
            raise ValueError(f"cannot roll back {count} of {self.length} tokens")
        del self._states[len(self._states) - count :]
        del self._since[len(self._since) - count :]
