"""Drafts copied from the text itself: what followed the last time the same words stood here.

Agents repeat themselves: arguments come from the question, answers from tool results, keys from
schemas. Looking a continuation up takes microseconds and no network (prompt lookup decoding). Of
the latest places where the text stood like this, the one that matches furthest back is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST = 3
"""Tokens that must match before anything is copied."""
# A longer match says nothing more, and more places would cost more than they find.
_FAR = 24
_CANDIDATES = 16


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


class Lookup:
    """Where each run of `LEAST` tokens stands in one sequence's text.

    Holds positions only; tokens are handed in at every call. Whoever changes the text says from
    where on (`crop`).
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], int] = {}  # a run -> where it was filed last
        # as they were filed, to go back from place to place, and to take them back
        self._runs: list[tuple[int, ...]] = []
        self._earlier: list[int] = []  # the place before of the same run; 0 if there is none

    def draft(
        self, tokens: Sequence[int], limit: int, ahead: Sequence[int] = ()
    ) -> tuple[tuple[int, ...], int]:
        """(what followed the longest match of the text's end, at most `limit` tokens; how many
        tokens matched, at most 24). Nothing and 0 without a match. Of equals the latest wins.

        ahead: tokens that will follow the text, as its end for now.
        """
        self._file(tokens)
        if ahead:
            tokens = [*tokens, *ahead]
        place = self._last.get(tuple(tokens[-LEAST:]), 0)
        if not place or limit <= 0:
            return (), 0
        best, longest = 0, 0
        for _ in range(_CANDIDATES):
            matched = _matched(tokens, place)
            if matched > longest:
                best, longest = place, matched
            place = self._earlier[place - LEAST]
            if not place:
                break
        end, draft = len(tokens), list[int]()
        for i in range(best, best + limit):  # where the text bites its tail, it goes round
            draft.append(tokens[i] if i < end else draft[i - end])
        return tuple(draft), longest

    def crop(self, length: int) -> None:
        """Only the first `length` tokens are still what they were: forget the rest."""
        while self._filed > max(length, LEAST):
            run, earlier = self._runs.pop(), self._earlier.pop()
            if earlier:
                self._last[run] = earlier
            else:
                del self._last[run]

    @property
    def _filed(self) -> int:
        """Runs that end before this position are filed, so that what follows them is known."""
        return LEAST + len(self._runs)

    def _file(self, tokens: Sequence[int]) -> None:
        last, runs, earlier = self._last, self._runs, self._earlier
        for end in range(LEAST + len(runs), len(tokens)):
            run = tuple(tokens[end - LEAST : end])
            earlier.append(last.get(run, 0))
            last[run] = end
            runs.append(run)


def _matched(tokens: Sequence[int], place: int) -> int:
    """How many tokens before `place` equal those at the text's end."""
    end = len(tokens)
    for back in range(1, min(_FAR, place) + 1):
        if tokens[place - back] != tokens[end - back]:
            return back - 1
    return min(_FAR, place)
