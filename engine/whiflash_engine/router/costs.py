"""What a round costs, in seconds, measured in this process.

Three things vary: drafting per arm and length, verification by width and by how far it looks back,
catching up per arm by backlog. The rest of a round (offers, picking, masks, commit) differs little
between arms. Everything is a running average, seeded by a short calibration and followed up by the
rounds themselves.

    seconds = drag * (verify(width) + look(width) * context + draft(arm, width - 1) + rest)

drag: how much slower than at calibration the machine is of late. A processor that is shared, or
whose clock varies, would otherwise make arms look dear that are picked often, and cheap those that
were measured long ago. look: what looking back takes for each position, of a pass and of its rows.

Plain lists: a round has some dozen numbers, for which an array's operators cost more than their
arithmetic.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence

from whiflash_engine.config import ArmName
from whiflash_engine.events import Round

# An update moves an average by a tenth of the way to a measurement that is first clipped to
# within a factor of three: one stall moves it by a fifth at most, a machine that has become
# ten times slower is believed after about fifteen rounds.
_RATE = 0.1
_CLIP = 3.0
# Positions that make no difference to what looking back takes.
_NEARBY = 32
# How much of a change in the seconds of a width is taken to be its own.
_ALONE = 0.2


def moved(average: float, x: float, rate: float = _RATE) -> float:
    """A running average of positive numbers after one more, which cannot carry it away."""
    clipped = min(max(x, average / _CLIP), average * _CLIP)
    return average + rate * (clipped - average)


class Curve:
    """Averages at integer points, linear between them and flat outside."""

    def __init__(self) -> None:
        self._values: dict[int, float] = {}
        self._places: list[int] = []  # in order
        self._asked: dict[tuple[int, int], list[float]] = {}  # since the last change

    def seed(self, at: int, value: float) -> None:
        if at not in self._values:
            insort(self._places, at)
        self._values[at] = value
        self._asked.clear()

    def add(self, at: int, value: float, rate: float = _RATE) -> None:
        if at not in self._values:
            # a new place begins with what its neighbours say: one measurement may be a stall
            known = self.at(at)
            self.seed(at, value if known is None else known)
        self._values[at] = moved(self._values[at], value, rate)
        self._asked.clear()

    def at(self, place: int) -> float | None:
        """None before anything has been measured."""
        if place in self._values:
            return self._values[place]
        return self._line(place) if self._places else None

    def between(self, low: int, high: int) -> Sequence[float]:
        """At low, low+1, ..., high; nothing before anything has been measured."""
        if not self._places:
            return ()
        known = self._asked.get((low, high))
        if known is None:
            values, line = self._values, self._line
            known = [values[i] if i in values else line(i) for i in range(low, high + 1)]
            self._asked[low, high] = known
        return known

    def _line(self, place: int) -> float:
        """What the neighbours of a place without a value say."""
        i = bisect_left(self._places, place)
        left, right = self._places[max(i - 1, 0)], self._places[min(i, len(self._places) - 1)]
        start, end = self._values[left], self._values[right]
        return start + (end - start) * (place - left) / max(right - left, 1)


class CostModel:
    """Expected seconds of a round. Not for several threads at once."""

    def __init__(self) -> None:
        self._draft: dict[ArmName, Curve] = {}
        self._verify = Curve()
        self._catch_up: dict[ArmName, Curve] = {}
        self._rest: float | None = None
        self._seeded: set[int] = set()  # widths whose seconds tell of the drag
        self._look, self._drag = (0.0, 0.0), 1.0
        # since the last change
        self._asked: dict[tuple[ArmName, int], list[float]] = {}
        self._passes: dict[int, list[float]] = {}

    def seed(self, arm: ArmName, drafts: int, seconds: float) -> None:
        """Calibration: what drafting so many tokens takes, ordinary ingest included."""
        self._forget()
        self._draft.setdefault(arm, Curve()).seed(drafts, seconds)

    def seed_verify(self, width: int, seconds: float) -> None:
        """Calibration: what a target pass over `width` tokens takes."""
        self._forget()
        self._verify.seed(width, seconds)
        self._seeded.add(width)

    def seed_look(self, a_pass: float, a_row: float) -> None:
        """Calibration: seconds for every position that a pass looks back to, and for every such
        position and row of it."""
        self._forget()
        self._look = (a_pass, a_row)

    def seed_catch_up(self, arm: ArmName, backlog: int, seconds: float) -> None:
        """Calibration: what taking in so many positions takes."""
        self._catch_up.setdefault(arm, Curve()).seed(backlog, seconds)

    def learn(self, round: Round) -> None:
        self._forget()
        seconds = round.seconds
        if seconds.verify > 0:
            self._learn_pass(round.verified, round.position, seconds.verify)
        drag = self._drag
        if len(round.proposed) > round.forced:  # else it was an ingest and no more
            curve = self._draft.setdefault(round.arm, Curve())
            # one that its drafter left out has been looked at as well
            curve.add(len(round.proposed) + (round.doubt is not None), seconds.draft / drag)
        if seconds.catch_up > 0:
            # Backlogs are rarely the same twice: those between two powers of two count as the
            # middle one.
            least = 1 << max(round.backlog, 1).bit_length() - 1
            curve = self._catch_up.setdefault(round.arm, Curve())
            curve.add(least + least // 2, seconds.catch_up / drag)
        rest = (seconds.offer + seconds.pick + seconds.mask + seconds.commit) / drag
        self._rest = rest if self._rest is None else moved(self._rest, rest)

    def _forget(self) -> None:
        self._asked.clear()
        self._passes.clear()

    def _learn_pass(self, width: int, context: int, seconds: float) -> None:
        """A width that has become slower has so mostly with all others. One that calibration did
        not measure says nothing of them."""
        known, far = self._verify.at(width), self._far(width, context)
        if known is None or width not in self._seeded:
            self._verify.add(width, max(seconds / self._drag - far, 0.1 * seconds))
            return
        ratio, alone = seconds / (known + far), _ALONE * _RATE
        self._drag = moved(self._drag, ratio, _RATE - alone)
        self._verify.add(width, known * ratio / self._drag, alone)

    def _far(self, width: int, context: int) -> float:
        a_pass, a_row = self._look
        return context * (a_pass + a_row * width)

    def catch_up(self, arm: ArmName, backlog: int, width: int) -> float:
        """Seconds of one catch-up. A backlog of up to `width` positions is an ordinary ingest,
        which `draft` already contains."""
        curve = self._catch_up.get(arm)
        known = None if curve is None or backlog <= width else curve.at(backlog)
        return self._drag * (known or 0.0)

    def catch_ups(
        self, arms: Iterable[ArmName], backlog: Mapping[ArmName, int], width: Mapping[ArmName, int]
    ) -> dict[ArmName, float]:
        """Seconds of `catch_up` for those of the arms that are on offer."""
        return {
            arm: self.catch_up(arm, backlog.get(arm, 0), width[arm]) for arm in arms if arm in width
        }

    def expected(self, arm: ArmName, low: int, high: int, context: int = 0) -> Sequence[float]:
        """Seconds of a round of `arm`, positive, for each width from low to high: draft
        tokens + 1. Without catching up. context: positions before the pass, to within sixteen.

        An arm that has never drafted is taken to draft for nothing, so that it gets its turn;
        before any measurement at all every round costs one second.
        """
        at = context // _NEARBY
        known = self._asked.get((arm, at))
        if known is None or len(known) < high:
            known = self._asked[arm, at] = self._rounds(arm, high, at)
        return known[low - 1 : high]

    def _rounds(self, arm: ArmName, high: int, at: int) -> list[float]:
        """Seconds of a round from a width of one on."""
        passes = self._passes.get(at)
        if passes is None or len(passes) < high:
            passes = self._passes[at] = self._alone(high, (at + 0.5) * _NEARBY)
        curve, drag = self._draft.get(arm), self._drag
        if curve is None:
            return passes
        drafting = curve.between(0, len(passes) - 1)
        return [one + drag * draft for one, draft in zip(passes, drafting, strict=True)]

    def _alone(self, high: int, context: float) -> list[float]:
        """Seconds of a round without its draft."""
        a_pass, a_row = self._look
        drag, rest, far = self._drag, (self._rest or 0.0) + a_pass * context, a_row * context
        verify = self._verify.between(1, high) or [1.0] * high
        return [drag * (rest + far * width + one) for width, one in enumerate(verify, 1)]
