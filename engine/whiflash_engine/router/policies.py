"""How many tokens a round of each arm is expected to commit, by the length of its draft.

    StaticPolicy     one arm, always
    RandomPolicy     any arm, evenly: for tests that switch every round
    ThresholdPolicy  the paper's rule: AR if H > tau, else diffusion
    EntropyPolicy    running averages per arm, span and entropy, and for every draft length

Those learned on the target's hidden state are in `neural`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round
from whiflash_engine.sampling import uniform


@dataclass(frozen=True, slots=True)
class RouteContext:
    """What is known before a round.

    entropy: nats, of the target distribution that produced the last bonus token.
    span: where the next token lies; since: for how many tokens it has lasted, at most 64.
    position: the next token's absolute position. constrained: a grammar holds.
    backlog: per arm, committed positions that its drafter has not ingested.
    width: per arm, the most rows of the target pass if it is picked: draft tokens + 1.
    forced: tokens that the grammar implies next; every arm's draft begins with them.
    copied: what followed behind them the last time the text stood here; matched: how many
        tokens were the same before it.
    hidden: (hidden,), the target's final hidden state at the last position that it
        has processed, the one before the bonus token's.
    """

    entropy: float
    span: Span
    position: int
    backlog: Mapping[ArmName, int]
    width: Mapping[ArmName, int]
    forced: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    matched: int = 0
    since: int = 0
    constrained: bool = False
    hidden: Tensor | None = None


Expected: TypeAlias = NDArray[np.float64]
_ONE: Final[Expected] = np.ones(1)


class Policy(Protocol):
    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        """Those of `arms` that it wants to choose among, the preferred first in a tie."""
        ...

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        """Expected tokens of a round, bonus included, for the longest drafts on offer: the last
        number is for all `width` - 1 draft tokens, the one before for one less, and so on. One
        number leaves no choice of length. Only ratios matter."""
        ...

    def learn(self, round: Round) -> None: ...


class StaticPolicy:
    """One arm always; plain decoding where it is not on offer."""

    def __init__(self, arm: ArmName) -> None:
        self._arm: ArmName = arm

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return (self._arm,) if self._arm in arms else ("plain",)

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        return _ONE

    def learn(self, round: Round) -> None:
        pass


class RandomPolicy:
    """Even odds for every arm, drawn from (seed, position)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        return np.array([1.0 + uniform(self._seed, context.position, f"arm {arm}")])

    def learn(self, round: Round) -> None:
        pass


class ThresholdPolicy:
    """WhiFlash-Entropy (arXiv 2606.07710): AR if H > tau, else diffusion.

    Put as a ratio of expectations, E_ar / E_diffusion = exp(2 (H - tau)), so that with
    balance 0 the scores are H - tau and tau - H, and a span bias shifts tau in nats.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def signal(self, context: RouteContext) -> float:
        """What is held against the threshold."""
        return context.entropy

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        wanted: tuple[ArmName, ...] = ("diffusion", "ar")
        return tuple(arm for arm in wanted if arm in arms) or ("plain",)

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        # Any threshold must do, and exp(-800) is 0.
        over = max(-300.0, min(self.signal(context) - self._threshold, 300.0))
        return np.array([math.exp(over if arm == "ar" else -over)])

    def learn(self, round: Round) -> None:
        pass


# Edges of the entropy buckets, in nats, and of those of matched tokens.
_EDGES: Final = (0.02, 0.1, 0.3, 0.7, 1.5, 3.0)
_MATCHES: Final = (4, 6, 9, 16)
# Each level counts as this many rounds in the estimate of the level below it.
_SHRINKAGE: Final = 4.0
# Weight of the past at each new round: a memory of about a hundred.
_DECAY: Final = 0.99
_PRIOR: Final = 0.5


class EntropyPolicy:
    """E_a(k) = 1 + s_1 + ... + s_k for every draft length k, from the rounds seen so far.

    s_i, the chance that the first i draft tokens are all accepted, is the product of the chances
    that token j is accepted once those before it are. These are running averages, per position,
    in three levels: arm; arm and entropy; arm, entropy and span. What is copied from the text goes
    by how many tokens matched instead of the entropy. A token behind a rejected one tells nothing,
    nor does one that was not drafted; what a position once said fades, and is then as good as
    what the position before it says.

    Each level is shrunk towards the one above it, the topmost towards the position before, and
    the first position towards one half: a cell that has seen little says what its elders say.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[object, ...], _Cell] = {}

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        width, forced = context.width[arm], len(context.forced)
        drafts = width - 1 - forced
        if arm in ("plain", "forced") or drafts < 1:
            return np.array([float(width)])
        return 1.0 + forced + self._chances(_levels(arm, context), drafts).cumprod().cumsum()

    def learn(self, round: Round) -> None:
        accepted, drafted = tried(round)
        if drafted < 1:
            return
        for key in _levels(round.arm, round):
            self._cells.setdefault(key, _Cell()).add(accepted, drafted)

    def _chances(self, levels: Sequence[tuple[object, ...]], count: int) -> Expected:
        """Per position, that a draft token is accepted once all before it are."""
        above: Expected | None = None
        for key in levels:
            cell = self._cells.get(key)
            if cell is not None:
                above = cell.estimates(above, count)
        return np.full(count, _PRIOR) if above is None else above


def tried(round: Round) -> tuple[int, int]:
    """(how many draft tokens passed, how many were drafted) behind those that a grammar forced,
    which are certain. A draft that was cut was no longer than what passed of it."""
    accepted = round.accepted - round.forced
    drafted = len(round.proposed) - round.forced
    if len(round.tokens) <= round.accepted:
        drafted = accepted
    return (accepted, drafted) if accepted >= 0 else (0, 0)


class _Cell:
    """Trials and successes per position of a draft, the older the less they weigh."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, 16))

    def add(self, accepted: int, drafted: int) -> None:
        self._reach(drafted)
        self._counts *= _DECAY
        tried, passed = self._counts
        tried[: min(accepted + 1, drafted)] += 1.0
        passed[: min(accepted, drafted)] += 1.0

    def estimates(self, above: Expected | None, count: int) -> Expected:
        """above: the level above's; None for the topmost level."""
        self._reach(count)
        tried, passed = self._counts[:, :count]
        if above is not None:
            found: Expected = (passed + _SHRINKAGE * above) / (tried + _SHRINKAGE)
            return found
        chances, elder = [], _PRIOR
        for n, k in zip(tried.tolist(), passed.tolist(), strict=True):
            elder = (k + _SHRINKAGE * elder) / (n + _SHRINKAGE)
            chances.append(elder)
        return np.array(chances)

    def _reach(self, count: int) -> None:
        missing = count - self._counts.shape[1]
        if missing > 0:
            self._counts = np.pad(self._counts, ((0, 0), (0, missing)))


def _levels(arm: ArmName, place: RouteContext | Round) -> tuple[tuple[object, ...], ...]:
    bucket = bisect_right(_EDGES, place.entropy)
    if arm == "retrieval":
        bucket = bisect_right(_MATCHES, place.matched)
    return (arm,), (arm, bucket), (arm, bucket, place.span)
