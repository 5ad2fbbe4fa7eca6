"""Seconds of rounds without the moment's luck.

Methods take turns, but the machine changes between two turns as well: a pass of the same width may
take half as long again. So each pass of the target is also charged at the median of its width,
whichever method ran it, and each draft at the median of its arm and length. What remains is what a
method decides, and what deciding takes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from whiflash_engine.config import ArmName
from whiflash_engine.events import Round

Draft = tuple[ArmName, int]


class Levels:
    """rounds: of all methods that are to be compared."""

    def __init__(self, rounds: Iterable[Round]) -> None:
        passes: dict[int, list[float]] = defaultdict(list)
        drafts: dict[Draft, list[float]] = defaultdict(list)
        for done in rounds:
            passes[done.verified].append(done.seconds.verify)
            if not _apart(done):
                drafts[_draft(done)].append(done.seconds.draft)
        self._passes = {width: median(found) for width, found in passes.items()}
        self._drafts = {draft: median(found) for draft, found in drafts.items()}

    def seconds(self, rounds: Sequence[Round]) -> float:
        """Of these rounds, without the prompt's pass."""
        return sum(map(self._one, rounds))

    def _one(self, done: Round) -> float:
        own = done.seconds
        draft = own.draft if _apart(done) else self._drafts[_draft(done)]
        return own.decoding - own.verify - own.draft + self._passes[done.verified] + draft


def _draft(done: Round) -> Draft:
    """A token that its drafter left out has been looked at as well."""
    return done.arm, len(done.proposed) + (done.doubt is not None)


def _apart(done: Round) -> bool:
    """Whether what drafting elsewhere includes, taking in the last round's tokens, was booked as
    something else."""
    return done.seconds.catch_up > 0 or done.seconds.prefill > 0
