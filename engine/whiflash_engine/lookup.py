"""Drafts copied from the text itself: what followed the last time the same words stood here.

Agents repeat themselves: arguments come from the question, answers from tool results, keys from
schemas. Looking a continuation up takes microseconds and no network (prompt lookup decoding;
the suffix is matched as far back as it reaches, so that the longest match is copied from).
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST = 3
"""Tokens that must match before anything is copied."""
_FAR = 24
_CANDIDATES = 16


class Lookup:
    """Where each run of `LEAST` tokens stands in one sequence's text.

    Holds positions only; tokens are handed in at every call. A position that no longer holds
    what it was filed under is passed over.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._filed = 0  # runs that end before this position are filed, so what follows is known

    def draft(self, tokens: Sequence[int], limit: int) -> tuple[tuple[int, ...], int]:
        """(what followed the longest match of the text's end, at most `limit` tokens; how many
        tokens matched, at most 24). Nothing and 0 without a match. Of equals the latest wins."""
        self._file(tokens)
        end = len(tokens)
        if limit <= 0 or end <= LEAST:
            return (), 0
        best, longest = 0, 0
        for place in reversed(self._places.get(tuple(tokens[-LEAST:]), ())[-_CANDIDATES:]):
            matched = _matched(tokens, place) if place < end else 0
            if matched > longest:
                best, longest = place, matched
        if longest < LEAST:
            return (), 0
        draft: list[int] = []
        for i in range(best, best + limit):  # where the text bites its tail, it goes round
            draft.append(tokens[i] if i < end else draft[i - end])
        return tuple(draft), longest

    def crop(self, length: int) -> None:
        """Only the first `length` tokens are still what they were."""
        self._filed = min(self._filed, length)

    def _file(self, tokens: Sequence[int]) -> None:
        for end in range(max(self._filed, LEAST), len(tokens)):
            self._places.setdefault(tuple(tokens[end - LEAST : end]), []).append(end)
        self._filed = len(tokens)


def _matched(tokens: Sequence[int], place: int) -> int:
    """How many tokens before `place` equal those at the text's end."""
    end = len(tokens)
    for back in range(1, min(_FAR, place) + 1):
        if tokens[place - back] != tokens[end - back]:
            return back - 1
    return min(_FAR, place)
