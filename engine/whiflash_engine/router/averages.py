"""A policy that learns from its own rounds: running averages per arm, entropy and span, for
every draft length."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from whiflash_engine.config import ArmName
from whiflash_engine.events import Round
from whiflash_engine.router.policies import Expected, RouteContext

Key: TypeAlias = tuple[str | int, ...]
"""Of a cell: the arm, or arm and bucket, or arm, bucket and span."""

# Edges of the entropy buckets, in nats, and of those of matched tokens.
_EDGES: Final = (0.02, 0.1, 0.3, 0.7, 1.5, 3.0)
_MATCHES: Final = (4, 6, 9, 16)
# Each level counts as this many rounds in the estimate of the level below it.
_SHRINKAGE: Final = 4.0
# Weight of the past at each new round: a memory of about a hundred.
_DECAY: Final = 0.99
_PRIOR: Final = 0.5


class AveragesPolicy:
    """E_a(k) = 1 + s_1 + ... + s_k for every draft length k, from the rounds seen so far.

    s_i, the chance that the first i draft tokens are all accepted, is the product of the chances
    that token j is accepted once those before it are. These are running averages, per position,
    in three levels: arm; arm and entropy; arm, entropy and span. What is copied from the text goes
    by how many tokens matched instead of the entropy. A token behind a rejected one tells nothing,
    nor does one that was not drafted. One that its drafter left out counts as the chance that it
    gave it, or only tokens would count that it is sure of. What a position once said fades, and is
    then as good as what the position before it says.

    Each level is shrunk towards the one above it, the topmost towards the position before, and
    the first position towards one half: a cell that has seen little says what its elders say.
    """

    def __init__(self) -> None:
        self._cells: dict[Key, _Cell] = {}

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        width, forced = context.width[arm], len(context.forced)
        drafts = width - 1 - forced
        if arm in ("plain", "forced") or drafts < 1:
            return (float(width),)
        return lengths(self._chances(_levels(arm, context), drafts), forced)

    def learn(self, round: Round) -> None:
        accepted, drafted = round.tried
        if drafted < 1:
            return
        for key in _levels(round.arm, round):
            self._cells.setdefault(key, _Cell()).add(accepted, drafted, round.untried)

    def counts(self) -> dict[Key, tuple[list[float], list[float]]]:
        """Of every cell: trials and successes by position, faded."""
        return {key: (cell.tried, cell.passed) for key, cell in self._cells.items()}

    def recall(self, counts: Mapping[Key, tuple[list[float], list[float]]]) -> None:
        """Go on from these instead of what was learned so far."""
        self._cells = {key: _Cell(*found) for key, found in counts.items()}

    def _chances(self, levels: Sequence[Key], count: int) -> list[float]:
        """Per position, that a draft token is accepted once all before it are."""
        above: list[float] = []
        for key in levels:
            cell = self._cells.get(key)
            if cell is not None:
                above = cell.estimates(above, count)
        return above or [_PRIOR] * count


def lengths(chances: Iterable[float], forced: int) -> list[float]:
    """Expected tokens of a round with 1, 2, ... draft tokens behind the forced ones, bonus
    counted. chances: that a token is accepted once all before it are."""
    total, survival, found = 1.0 + forced, 1.0, list[float]()
    for chance in chances:
        survival *= chance
        total += survival
        found.append(total)
    return found


class _Cell:
    """Trials and successes per position of a draft, the older the less they weigh."""

    def __init__(self, tried: list[float] | None = None, passed: list[float] | None = None) -> None:
        self.tried = tried or []
        self.passed = passed or []

    def add(self, accepted: int, drafted: int, untried: float | None) -> None:
        """untried: the chance of the token behind those that were drafted, which all passed."""
        missing = [0.0] * (drafted + (untried is not None) - len(self.tried))
        self.tried = [_DECAY * n for n in self.tried] + missing
        self.passed = [_DECAY * n for n in self.passed] + missing
        for i in range(min(accepted + 1, drafted)):
            self.tried[i] += 1.0
            self.passed[i] += i < accepted
        if untried is not None:
            self.tried[drafted] += 1.0
            self.passed[drafted] += untried

    def estimates(self, above: Sequence[float], count: int) -> list[float]:
        """above: the level above's; () for the topmost level."""
        found: list[float] = []
        known, elder = len(self.tried), _PRIOR
        for i in range(count):
            if above:
                elder = above[i]
            if i < known:
                elder = (self.passed[i] + _SHRINKAGE * elder) / (self.tried[i] + _SHRINKAGE)
            found.append(elder)
        return found


def _levels(arm: ArmName, place: RouteContext | Round) -> tuple[Key, ...]:
    bucket = bisect_right(_EDGES, place.entropy)
    if arm == "retrieval":
        bucket = bisect_right(_MATCHES, place.matched)
    return (arm,), (arm, bucket), (arm, bucket, place.span)
