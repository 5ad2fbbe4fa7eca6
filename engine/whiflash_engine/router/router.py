"""Which arm drafts the next round.

Every arm on offer is weighed (`Scales`): expected tokens against expected seconds, with a prior
for the span. The best one drafts, unless another one has not been used for so long that it is due
for a trial (`Probes`); one that was far ahead stands for some rounds (`Standing`). Drafters are
told what a token costs (`Price`) and end their drafts by that. All of these learn from the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from whiflash_engine.config import ArmName
from whiflash_engine.events import Round
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.decision import Decision
from whiflash_engine.router.policies import Policy, RouteContext
from whiflash_engine.router.price import Price
from whiflash_engine.router.probes import Probes
from whiflash_engine.router.scales import SURE, Scales, Weight
from whiflash_engine.router.standing import Standing
from whiflash_engine.sampling import uniform

__all__ = ["Decision", "RouteContext", "Router"]

_HEARD: Final = 8
"""Rounds to be learned from at once."""


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
        lets_stand: bool = False,
        costs: CostModel | None = None,
    ) -> None:
        """probed: arms to try again when they have not been used for long. without: never worth
        getting a draft ready for. whole_drafts: always draft all that is on offer. hindsight: the
        share of catch-ups at which the drafter is scored on what it missed. lets_stand: not every
        round is asked about; see `standing`.

        costs: measured seconds, to be shared by routers over the same drafters.
        """
        self._policy = policy
        self._balance = balance
        self._costs = CostModel() if costs is None else costs
        self._without = frozenset(without)
        self._whole, self._hindsight = whole_drafts, hindsight
        self._price = Price(self._costs, balance)
        self._scales = Scales(policy, self._costs, balance, span_bias, whole=whole_drafts)
        self._probes = Probes(probed)
        self._standing = Standing(balance) if lets_stand else None
        self._weighed: dict[ArmName, Weight] = {}  # in the round that was picked last
        self._heard: list[tuple[Round, dict[ArmName, Weight]]] = []

    @property
    def policy(self) -> Policy:
        """For keeping what it has learned. Whoever shares the router must not be in a round."""
        self.digest()
        return self._policy

    @property
    def costs(self) -> CostModel:
        """For calibration. Whoever shares the router must not be in a round."""
        self.digest()
        return self._costs

    def may(self, arm: ArmName) -> bool:
        """Whether it could ever pick the arm, so that it is worth getting a draft ready."""
        return arm not in self._without and arm in self._policy.candidates((arm,))

    def pick(self, context: RouteContext) -> Decision:
        """Among the arms on offer, those that `context` has a width for."""
        self._weighed, width = {}, context.width
        if self._standing is not None and (stands := self._standing.recall(context)):
            return stands
        candidates = self._policy.candidates(tuple(width))
        if len(candidates) == 1:
            (only,) = candidates
            # a seed repeats a text under one arm: no clock may end its drafts
            floor = 0.0 if context.sampled else self._floor(only, context)
            return Decision(only, width[only] - 1, floor=floor)
        weights = self._scales.weigh(candidates, context)
        scores = {arm: weight.score for arm, weight in weights.items()}
        stale = self._stale(weights, context)
        if stale is not None:  # a probe drafts all it can, to see how far it gets
            self._probes.begin(stale)
            return Decision(stale, width[stale] - 1, scores)
        best = max(candidates, key=scores.__getitem__)
        if self._probes.waited(best):
            self._probes.begin(best)  # by itself
        stays: ArmName | None = None
        if self._balance:
            self._weighed = weights
        late = self._balance and context.backlog.get(best, 0) > width[best]
        if late and best in SURE and self._new_to_all(context):
            drafters = [arm for arm in candidates if arm in SURE]
            best = max(drafters, key=lambda arm: self._at_first(arm, weights[arm], context))
        elif self._standing is not None:
            stays = self._standing.keep(scores, context)
        floor = self._floor(best, context)
        if self._standing is not None and stays:
            self._standing.floor = floor if stays == best else self._floor(stays, context)
        return Decision(best, weights[best].drafts, scores, floor)

    def learn(self, round: Round) -> None:
        """To be told every round, whoever picked it."""
        self._heard.append((round, self._weighed))
        self._weighed = {}
        if len(self._heard) >= _HEARD:
            self.digest()

    def digest(self) -> None:
        """Learn from the rounds heard of: several at once, for the first of them costs most."""
        heard, self._heard = self._heard, []  # whatever is broken off is not learned twice
        for round, weights in heard:
            self._costs.learn(round)
            self._policy.learn(round)
            self._price.learn(round)
            self._probes.learn(round)
            if weights:
                self._scales.learn(weights, len(round.tokens))

    def looks_back(self, position: int) -> bool:
        """Whether a drafter that catches up is to be scored on the round that began there."""
        return uniform(0, position, "hindsight") < self._hindsight

    def learn_idle(self, round: Round) -> None:
        """What an idle drafter would have made of the last round; see `hindsight`."""
        self.digest()
        self._policy.learn(round)

    def _new_to_all(self, context: RouteContext) -> bool:
        """Whether no drafter has taken in anything of the text yet, and all have much to."""
        least, backlog, width = context.generated, context.backlog, context.width
        return all(backlog.get(arm, 0) > max(least, width[arm]) for arm in SURE if arm in width)

    def _at_first(self, arm: ArmName, weight: Weight, context: RouteContext) -> float:
        """Who takes a text in first goes by what drafters are worth on the average: the others
        would have to catch up with all of it, and a text's first round is unlike the others."""
        return self._scales.usual(arm, context) + weight.score - weight.ready

    def _floor(self, arm: ArmName, context: RouteContext) -> float:
        if arm not in SURE or self._whole:
            return 0.0
        return self._price.of(arm, context.width[arm], context.position)

    def _stale(self, weights: Mapping[ArmName, Weight], context: RouteContext) -> ArmName | None:
        """An arm that is due for a probe."""
        for arm, weight in weights.items():
            if not self._probes.waited(arm):
                continue
            width = context.width[arm]
            if arm != "plain" and width <= len(context.forced) + 1:
                continue  # a draft of nothing but forced tokens would teach nothing
            # all of it, also where others are no readier: they will have to catch up then
            if not self._balance or self._probes.affords(arm, weight.catch_up, weight.seconds):
                return arm
        return None
