"""Which arm drafts the next round.

    score_a(k) = ln E_a(k) - balance * ln C_a(k) + bias[span][a]          the largest wins

E_a(k), the tokens that a round with k draft tokens of arm a is expected to commit, comes from the
policy; C_a(k), its expected seconds, from measured costs, and what getting ready costs it
(`Prospect`). balance 0 asks for tokens a round, 1 for tokens a second. bias is the user's prior in
log units: +0.1 means "a tenth more tokens would be needed to change my mind".

The length is chosen with the arm, where it is one that copies: the k of the largest score. A
drafter finds out as it drafts how far it can be trusted (`Ending`): it may draft all that is on
offer, and is told what a token costs (`Price`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.policies import Policy, RouteContext
from whiflash_engine.router.price import Price
from whiflash_engine.router.probes import Probes
from whiflash_engine.router.prospect import Prospect
from whiflash_engine.sampling import uniform

__all__ = ["Decision", "RouteContext", "Router"]

FAVOURED: Final[Mapping[Span, ArmName]] = {
    "json": "diffusion",
    "tool_call": "diffusion",
    "reasoning": "ar",
}
"""Whom the span bias favours."""
_SURE: Final = frozenset[ArmName](("ar", "diffusion"))
"""Arms that say how sure they are."""


@dataclass(frozen=True, slots=True)
class Decision:
    """drafts: how many tokens to draft at most. scores: per arm, at its best length; empty when
    there was no choice. The arm with the largest wins, except in a probe and where no drafter has
    taken the text in yet. floor: of
    `Drafter.propose`."""

    arm: ArmName
    drafts: int
    scores: Mapping[ArmName, float] = field(default_factory=dict)
    floor: float = 0.0


class _Offer(NamedTuple):
    """score: with what getting ready costs; ready: without. seconds: of the round, where costs
    count."""

    score: float
    drafts: int
    ready: float
    seconds: float


class Router:
    """A policy, measured costs, and the span bias. Keeps what it learned between generations.

    Its choice may depend on all drafts before, but on no random number that is still to be used,
    so the output law of a generation cannot depend on it; see `sampling`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        balance: float = 0.0,
        span_bias: float = 0.0,
        probed: Sequence[ArmName] = (),
        without: Sequence[ArmName] = (),
        whole_drafts: bool = False,
        hindsight: float = 0.0,
        costs: CostModel | None = None,
    ) -> None:
        """probed: arms to try again when they have not been used for long. without: never worth
        getting a draft ready for. whole_drafts: always draft all that is on offer. hindsight: the
        share of catch-ups at which the drafter is scored on what it missed.

        costs: measured seconds, to be shared by routers over the same drafters.
        """
        self._policy = policy
        self._balance = balance
        self._span_bias = span_bias
        self._costs = CostModel() if costs is None else costs
        self._without = frozenset(without)
        self._whole, self._hindsight = whole_drafts, hindsight
        self._price, self._prospect = Price(self._costs, balance), Prospect()
        self._probes = Probes(probed)
        # of the round that was picked last: what drafters were worth, and would have saved
        self._worth: dict[ArmName, float] = {}
        self._gains: dict[ArmName, float] = {}

    @property
    def policy(self) -> Policy:
        """For keeping what it has learned."""
        return self._policy

    @property
    def costs(self) -> CostModel:
        """For calibration."""
        return self._costs

    def may(self, arm: ArmName) -> bool:
        """Whether it could ever pick the arm, so that it is worth getting a draft ready."""
        return arm not in self._without and arm in self._policy.candidates((arm,))

    def pick(self, context: RouteContext) -> Decision:
        """Among the arms on offer, those that `context` has a width for."""
        candidates, width = self._policy.candidates(tuple(context.width)), context.width
        self._worth, self._gains = {}, {}
        if len(candidates) == 1:
            (only,) = candidates
            # a seed repeats a text under one arm: no clock may end its drafts
            floor = 0.0 if context.sampled else self._floor(only, context)
            return Decision(only, width[only] - 1, floor=floor)
        offers = self._offers(candidates, context)
        scores = {arm: offer.score for arm, offer in offers.items()}
        stale = self._stale(offers, context)
        if stale is not None:  # a probe drafts all it can, to see how far it gets
            return Decision(stale, width[stale] - 1, scores)
        best = max(candidates, key=scores.__getitem__)
        if self._balance:
            self._worth = {arm: offers[arm].ready for arm in candidates if arm in _SURE}
            if best in _SURE and self._new_to_all(context):
                best = max(self._worth, key=lambda arm: self._at_first(offers[arm], arm))
            self._gains = self._saved(offers)
        chosen = offers[best]
        return Decision(best, chosen.drafts, scores, self._floor(best, context))

    def learn(self, round: Round) -> None:
        """To be told every round, whoever picked it."""
        self._costs.learn(round)
        self._policy.learn(round)
        self._price.learn(round)
        self._prospect.learn(self._worth, self._gains, len(round.tokens))
        self._worth, self._gains = {}, {}
        self._probes.learn(round)

    def looks_back(self, position: int) -> bool:
        """Whether a drafter that catches up is to be scored on the round that began there."""
        return uniform(0, position, "hindsight") < self._hindsight

    def learn_idle(self, round: Round) -> None:
        """What an idle drafter would have made of the last round; see `hindsight`."""
        self._policy.learn(round)

    def _offers(
        self, candidates: Sequence[ArmName], context: RouteContext
    ) -> dict[ArmName, _Offer]:
        """Every arm's best score, and the draft length that reaches it."""
        costs, balance, width, backlog = self._costs, self._balance, context.width, context.backlog
        favoured, expect = FAVOURED.get(context.span), self._policy.expect
        behind = costs.behind(_SURE & width.keys(), backlog, width) if balance else {}
        passes = costs.passes(max(width.values()), context.position) if balance else ()
        offers: dict[ArmName, _Offer] = {}
        for arm in candidates:
            expected, most = expect(arm, context), width[arm]
            if self._whole:
                expected = expected[-1:]
            seconds = expected
            if balance:
                seconds = costs.rounds(arm, passes, most - len(expected) + 1, most)
            if balance == 1.0:  # a power costs more than all the rest
                worth = [tokens / cost for tokens, cost in zip(expected, seconds, strict=True)]
            else:
                pairs = zip(expected, seconds, strict=True)
                worth = [tokens / cost**balance for tokens, cost in pairs]
            best = max(worth)
            shorter = worth[::-1].index(best)  # of equals the longest
            ready, spent = math.log(best), seconds[-1 - shorter]
            if arm == favoured:
                ready += self._span_bias
            score = ready
            if catch_up := behind.get(arm):
                late = self._prospect.left(arm, catch_up, context.generated, context.room)
                score -= balance * math.log1p(late / spent)
            drafts = most - 1 if arm in _SURE else most - 1 - shorter
            offers[arm] = _Offer(score, drafts, ready, spent)
        return offers

    def _new_to_all(self, context: RouteContext) -> bool:
        """Whether no drafter has taken in anything of the text yet, and all have much to."""
        least, backlog = context.generated, context.backlog
        return all(backlog.get(arm, 0) > max(least, context.width[arm]) for arm in self._worth)

    def _at_first(self, offer: _Offer, arm: ArmName) -> float:
        """Who takes a text in first goes by what drafters are worth on the average: the others
        would have to catch up with all of it, and a text's first round is unlike the others."""
        return self._prospect.usual(arm, offer.ready) + offer.score - offer.ready

    def _saved(self, offers: Mapping[ArmName, _Offer]) -> dict[ArmName, float]:
        """Seconds that the best arm would save, were all of them ready: beside the next best."""
        best, other, *_ = sorted(offers.items(), key=lambda one: one[1].ready, reverse=True)
        ratio = math.exp(min((best[1].ready - other[1].ready) / self._balance, 10.0))
        return {best[0]: (ratio - 1.0) * best[1].seconds}

    def _floor(self, arm: ArmName, context: RouteContext) -> float:
        if arm not in _SURE or self._whole:
            return 0.0
        return self._price.of(arm, context.width[arm], context.position)

    def _stale(self, offers: Mapping[ArmName, _Offer], context: RouteContext) -> ArmName | None:
        """An arm that is due for a probe."""
        for arm, offer in offers.items():
            width = context.width[arm]
            # a draft of nothing but forced tokens would teach nothing
            teaches = arm == "plain" or width > len(context.forced) + 1
            if not teaches or not self._probes.waited(arm):
                continue
            # all of it, also where others are no readier: they will have to catch up then
            catch_up = self._costs.catch_up(arm, context.backlog.get(arm, 0), width)
            if not self._balance or self._probes.affords(arm, catch_up, offer.seconds):
                return arm
        return None
