"""What each arm on offer is worth in a round: the score of `router`.

    score_a(k) = ln E_a(k) - balance * ln C_a(k) + bias[span][a]          the largest wins

E_a(k), the tokens that a round with k draft tokens of arm a is expected to commit, comes from the
policy; C_a(k), its expected seconds, from measured costs, and what getting ready costs it
(`Prospect`). balance 0 asks for tokens a round, 1 for tokens a second. bias is the user's prior in
log units: +0.1 means "a tenth more tokens would be needed to change my mind".

The length is chosen with the arm, where it is one that copies: the k of the largest score. A
drafter finds out as it drafts how far it can be trusted (`Ending`): it may draft all that is on
offer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from whiflash_engine.config import ArmName, Span
from whiflash_engine.router.averages import AveragesPolicy
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.policies import Expected, Policy, RouteContext
from whiflash_engine.router.prospect import Prospect

SURE: Final = frozenset[ArmName](("ar", "diffusion"))
"""Arms that say how sure they are."""
FAVOURED: Final[Mapping[Span, ArmName]] = {
    "json": "diffusion",
    "tool_call": "diffusion",
    "reasoning": "ar",
}
"""Whom the span bias favours, over every other arm."""


class Weight(NamedTuple):
    """score: with the span's bias and what getting ready costs; ready: without either. drafts: how
    many tokens reach it. seconds: of the round, catch_up: of getting ready, where costs count."""

    score: float
    drafts: int
    ready: float
    seconds: float
    catch_up: float


class Scales:
    """Remembers what drafters have been worth. policy, costs: asked, not taught."""

    def __init__(
        self, policy: Policy, costs: CostModel, balance: float, span_bias: float, *, whole: bool
    ) -> None:
        """whole: always draft all that is on offer."""
        self._policy, self._costs = policy, costs
        self._balance, self._span_bias, self._whole = balance, span_bias, whole
        self._prospect, self._untaught = Prospect(), AveragesPolicy()

    def weigh(self, candidates: Sequence[ArmName], context: RouteContext) -> dict[ArmName, Weight]:
        """Every candidate at its best draft length."""
        balance, width, backlog = self._balance, context.width, context.backlog
        favoured, expect = FAVOURED.get(context.span), self._policy.expect
        late = self._costs.catch_ups(SURE, backlog, width) if balance else {}
        readiest = min(late.values(), default=0.0)
        weights: dict[ArmName, Weight] = {}
        for arm in candidates:
            ready, shorter, spent = self._worth(arm, expect(arm, context), context)
            score = ready + self._span_bias if arm == favoured else ready
            catch_up = late.get(arm, 0.0)
            if catch_up > readiest:
                behind = catch_up - readiest
                left = self._prospect.left(arm, behind, context.generated, context.room)
                score -= balance * math.log1p(left / spent)
            drafts = width[arm] - 1 if arm in SURE else width[arm] - 1 - shorter
            weights[arm] = Weight(score, drafts, ready, spent, catch_up)
        return weights

    def usual(self, arm: ArmName, context: RouteContext) -> float:
        """What the drafter is worth on the average, in log units, were it ready. Before anything is
        learned every token is as likely to pass as not: what drafts cost decides."""
        usual = self._prospect.usual(arm)
        if usual is None:
            usual, _, _ = self._worth(arm, self._untaught.expect(arm, context), context)
        return usual

    def learn(self, weights: Mapping[ArmName, Weight], tokens: int) -> None:
        """weights: of a round that made so many tokens."""
        worth = {arm: weight.ready for arm, weight in weights.items() if arm in SURE}
        self._prospect.learn(worth, self._saved(weights), tokens)

    def _worth(
        self, arm: ArmName, expected: Expected, context: RouteContext
    ) -> tuple[float, int, float]:
        """(log units, how many tokens less than all, seconds) of the length that is worth most."""
        balance, most = self._balance, context.width[arm]
        if self._whole:
            expected = expected[-1:]
        seconds = expected
        if balance:
            seconds = self._costs.expected(arm, most - len(expected) + 1, most, context.position)
        if balance == 1.0:  # a power costs more than all the rest
            worth = [tokens / cost for tokens, cost in zip(expected, seconds, strict=True)]
        else:
            pairs = zip(expected, seconds, strict=True)
            worth = [tokens / cost**balance for tokens, cost in pairs]
        best = max(worth)
        shorter = worth[::-1].index(best)  # of equals the longest
        return math.log(best), shorter, seconds[-1 - shorter]

    def _saved(self, weights: Mapping[ArmName, Weight]) -> dict[ArmName, float]:
        """Seconds that the best arm would save, were all of them ready: beside the next best. A
        prior is none of it, also where it has another one draft."""
        best, other = sorted(weights, key=lambda arm: weights[arm].ready, reverse=True)[:2]
        ahead = weights[best].ready - weights[other].ready
        ratio = math.exp(min(ahead / self._balance, 10.0))
        return {best: (ratio - 1.0) * weights[best].seconds}
