"""How many tokens a round of each arm is expected to commit, by the length of its draft.

    StaticPolicy     one arm, always
    RandomPolicy     any arm, evenly: for tests that switch every round
    ThresholdPolicy  the paper's rule: AR if H > tau, else diffusion

Those that learn are in `averages` (from their own rounds) and `neural` (from training).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round
from whiflash_engine.router.recent import UNTRIED
from whiflash_engine.sampling import uniform


class RouteContext(NamedTuple):
    """What is known before a round.

    entropy: nats, of the target distribution that produced the last bonus token.
    span: where the next token lies; since: for how many tokens it has lasted.
    position: the next token's absolute position; generated: tokens before it that are not the
        prompt's; room: draft tokens that could still be committed.
    constrained: a grammar holds. sampled: tokens are drawn, and what is drawn depends on where
        drafts end.
    backlog: per arm, committed positions that its drafter has not ingested.
    width: per arm, the most rows of the target pass if it is picked: draft tokens + 1.
    forced: tokens that the grammar implies next; every arm's draft begins with them.
    copied: what followed behind them the last time the text stood here; matched: how many
        tokens were the same before it.
    recent: per arm, the share of the tokens that it could draft which passed lately.
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
    generated: int = 0
    room: int = 1 << 30
    constrained: bool = False
    sampled: bool = False
    recent: Mapping[ArmName, float] = UNTRIED
    hidden: Tensor | None = None


Expected: TypeAlias = Sequence[float]


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
        return (1.0,)

    def learn(self, round: Round) -> None:
        pass


class RandomPolicy:
    """Even odds for every arm, drawn from (seed, position)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        return (1.0 + uniform(self._seed, context.position, f"arm {arm}"),)

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
        return (math.exp(over if arm == "ar" else -over),)

    def learn(self, round: Round) -> None:
        pass
