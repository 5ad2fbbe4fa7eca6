"""How many tokens a round of each arm is expected to commit.

    StaticPolicy     one arm, always
    RandomPolicy     any arm, evenly: for tests that switch every round
    ThresholdPolicy  the paper's rule: AR if H > tau, else diffusion
    EntropyPolicy    running averages per arm, span and entropy, from the rounds seen so far

A policy learned on the target's hidden state (WhiFlash-Neural, `RouteContext.hidden`) is one
more class with these three methods.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from torch import Tensor

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round
from whiflash_engine.sampling import uniform


@dataclass(frozen=True, slots=True)
class RouteContext:
    """What is known before a round.

    entropy: nats, of the target distribution that produced the last bonus token.
    span: where the next token lies. position: its absolute position.
    backlog: per arm, committed positions that its drafter has not ingested.
    width: per arm, rows of the target pass if it is picked: draft tokens + 1.
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
    hidden: Tensor | None = None


class Policy(Protocol):
    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        """Those of `arms` that it wants to choose among, the preferred first in a tie."""
        ...

    def expect(self, arm: ArmName, context: RouteContext) -> float:
        """Expected tokens of a round, bonus included: 1..width. Only ratios matter."""
        ...

    def learn(self, round: Round) -> None: ...


class StaticPolicy:
    """One arm always; plain decoding where it is not on offer."""

    def __init__(self, arm: ArmName) -> None:
        self._arm: ArmName = arm

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return (self._arm,) if self._arm in arms else ("plain",)

    def expect(self, arm: ArmName, context: RouteContext) -> float:
        return 1.0

    def learn(self, round: Round) -> None:
        pass


class RandomPolicy:
    """Even odds for every arm, drawn from (seed, position)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> float:
        return 1.0 + uniform(self._seed, context.position, f"arm {arm}")

    def learn(self, round: Round) -> None:
        pass


class ThresholdPolicy:
    """WhiFlash-Entropy (arXiv 2606.07710): AR if H > tau, else diffusion.

    Put as a ratio of expectations, E_ar / E_diffusion = exp(2 (H - tau)), so that with
    balance 0 the scores are H - tau and tau - H, and a span bias shifts tau in nats.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        wanted: tuple[ArmName, ...] = ("diffusion", "ar")
        return tuple(arm for arm in wanted if arm in arms) or ("plain",)

    def expect(self, arm: ArmName, context: RouteContext) -> float:
        # Any threshold must do, and exp(-800) is 0.
        over = max(-300.0, min(context.entropy - self._threshold, 300.0))
        return math.exp(over if arm == "ar" else -over)

    def learn(self, round: Round) -> None:
        pass


# Edges of the entropy buckets, in nats, and of those of matched tokens.
_EDGES: Final = (0.02, 0.1, 0.3, 0.7, 1.5, 3.0)
_MATCHES: Final = (4, 6, 9, 16)
# Each level counts as this many rounds in the estimate of the level below it.
_SHRINKAGE: Final = 4.0
# Weight of the past at each new round: a memory of about a hundred.
_DECAY: Final = 0.99
_PRIOR: Final = 2.0


class EntropyPolicy:
    """E_a as running averages in three levels: arm; arm and entropy; arm, entropy and span. What
    is copied from the text goes by how many tokens matched instead of the entropy.

    Each level is shrunk towards the one above it, and the topmost towards two tokens, so that
    a cell that has seen little says what its elders say. A fully accepted draft that was cut
    short (by max_tokens, say) only tells "at least so many": the average then takes the larger
    of that and its own estimate. Plain rounds commit one token, without estimate.
    """

    def __init__(self) -> None:
        self._weight: dict[tuple[object, ...], float] = {}
        self._sum: dict[tuple[object, ...], float] = {}
        self._longest: dict[ArmName, int] = {}

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> float:
        if arm == "plain":
            return 1.0
        width = float(context.width[arm])
        if arm == "forced":
            return width
        estimate = self._estimate(_levels(arm, context))
        return min(max(len(context.forced) + estimate, 1.0), width)

    def learn(self, round: Round) -> None:
        # what a grammar forces is certain: only what was drafted behind it is learned
        offered = len(round.proposed) - round.forced
        accepted = round.accepted - round.forced
        if offered < 1 or accepted < 0:
            return
        value = accepted + 1.0
        longest = max(offered, self._longest.get(round.arm, 0))
        self._longest[round.arm] = longest
        if accepted == offered < longest:
            value = max(value, self._estimate(_levels(round.arm, round)))
        for key in _levels(round.arm, round):
            self._weight[key] = 1.0 + _DECAY * self._weight.get(key, 0.0)
            self._sum[key] = value + _DECAY * self._sum.get(key, 0.0)

    def _estimate(self, levels: Sequence[tuple[object, ...]]) -> float:
        estimate = _PRIOR
        for key in levels:
            total = self._sum.get(key, 0.0) + _SHRINKAGE * estimate
            estimate = total / (self._weight.get(key, 0.0) + _SHRINKAGE)
        return estimate


def _levels(arm: ArmName, place: RouteContext | Round) -> tuple[tuple[object, ...], ...]:
    bucket = bisect_right(_EDGES, place.entropy)
    if arm == "retrieval":
        bucket = bisect_right(_MATCHES, place.matched)
    return (arm,), (arm, bucket), (arm, bucket, place.span)
