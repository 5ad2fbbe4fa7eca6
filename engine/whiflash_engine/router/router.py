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
from typing import Final, NamedTuple

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round
from whiflash_engine.router.averages import AveragesPolicy
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.decision import Decision
from whiflash_engine.router.policies import Expected, Policy, RouteContext
from whiflash_engine.router.price import Price
from whiflash_engine.router.probes import Probes
from whiflash_engine.router.prospect import Prospect
from whiflash_engine.router.standing import Standing
from whiflash_engine.sampling import uniform

__all__ = ["Decision", "RouteContext", "Router"]

FAVOURED: Final[Mapping[Span, ArmName]] = {
    "json": "diffusion",
    "tool_call": "diffusion",
    "reasoning": "ar",
    "text": "ar",
}
"""Whom the span bias favours. Few models put tags around all that they think: text is as often
reasoning as not."""
_SURE: Final = frozenset[ArmName](("ar", "diffusion"))
"""Arms that say how sure they are."""
_HEARD: Final = 8
"""Rounds to be learned from at once."""


class _Offer(NamedTuple):
    """score: with what getting ready costs; ready: without. seconds: of the round, catch_up: of
    getting ready for it, where costs count."""

    score: float
    drafts: int
    ready: float
    seconds: float
    catch_up: float


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
        self._span_bias = span_bias
        self._costs = CostModel() if costs is None else costs
        self._without = frozenset(without)
        self._whole, self._hindsight = whole_drafts, hindsight
        self._price, self._prospect = Price(self._costs, balance), Prospect()
        self._untaught = AveragesPolicy()
        self._probes = Probes(probed)
        self._standing = Standing(balance) if lets_stand else None
        self._weighed: dict[ArmName, _Offer] = {}  # in the round that was picked last
        self._heard: list[tuple[Round, dict[ArmName, _Offer]]] = []

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
        offers = self._offers(candidates, context)
        scores = {arm: offer.score for arm, offer in offers.items()}
        stale = self._stale(offers, context)
        if stale is not None:  # a probe drafts all it can, to see how far it gets
            self._probes.begin(stale)
            return Decision(stale, width[stale] - 1, scores)
        best = max(candidates, key=scores.__getitem__)
        if self._probes.waited(best):
            self._probes.begin(best)  # by itself
        stays: ArmName | None = None
        if self._balance:
            self._weighed = offers
        late = self._balance and context.backlog.get(best, 0) > width[best]
        if late and best in _SURE and self._new_to_all(context):
            drafters = [arm for arm in candidates if arm in _SURE]
            best = max(drafters, key=lambda arm: self._at_first(offers[arm], arm, context))
        elif self._standing is not None:
            stays = self._standing.keep(scores, context)
        floor = self._floor(best, context)
        if self._standing is not None and stays:
            self._standing.floor = floor if stays == best else self._floor(stays, context)
        return Decision(best, offers[best].drafts, scores, floor)

    def learn(self, round: Round) -> None:
        """To be told every round, whoever picked it."""
        self._heard.append((round, self._weighed))
        self._weighed = {}
        if len(self._heard) >= _HEARD:
            self.digest()

    def digest(self) -> None:
        """Learn from the rounds heard of: several at once, for the first of them costs most."""
        heard, self._heard = self._heard, []  # whatever is broken off is not learned twice
        for round, offers in heard:
            self._costs.learn(round)
            self._policy.learn(round)
            self._price.learn(round)
            self._probes.learn(round)
            if offers:
                worth = {arm: offer.ready for arm, offer in offers.items() if arm in _SURE}
                self._prospect.learn(worth, self._saved(offers), len(round.tokens))

    def looks_back(self, position: int) -> bool:
        """Whether a drafter that catches up is to be scored on the round that began there."""
        return uniform(0, position, "hindsight") < self._hindsight

    def learn_idle(self, round: Round) -> None:
        """What an idle drafter would have made of the last round; see `hindsight`."""
        self.digest()
        self._policy.learn(round)

    def _offers(
        self, candidates: Sequence[ArmName], context: RouteContext
    ) -> dict[ArmName, _Offer]:
        """Every arm's best score, and the draft length that reaches it."""
        balance, width, backlog = self._balance, context.width, context.backlog
        favoured, expect = FAVOURED[context.span], self._policy.expect
        late = self._costs.catch_ups(_SURE, backlog, width) if balance else {}
        readiest = min(late.values(), default=0.0)
        offers: dict[ArmName, _Offer] = {}
        for arm in candidates:
            ready, shorter, spent = self._worth(arm, expect(arm, context), context)
            if arm == favoured:
                ready += self._span_bias
            score = ready
            catch_up = late.get(arm, 0.0)
            if catch_up > readiest:
                behind = catch_up - readiest
                left = self._prospect.left(arm, behind, context.generated, context.room)
                score -= balance * math.log1p(left / spent)
            drafts = width[arm] - 1 if arm in _SURE else width[arm] - 1 - shorter
            offers[arm] = _Offer(score, drafts, ready, spent, catch_up)
        return offers

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

    def _new_to_all(self, context: RouteContext) -> bool:
        """Whether no drafter has taken in anything of the text yet, and all have much to."""
        least, backlog, width = context.generated, context.backlog, context.width
        return all(backlog.get(arm, 0) > max(least, width[arm]) for arm in _SURE if arm in width)

    def _at_first(self, offer: _Offer, arm: ArmName, context: RouteContext) -> float:
        """Who takes a text in first goes by what drafters are worth on the average: the others
        would have to catch up with all of it, and a text's first round is unlike the others. Before
        any round every token is as likely to pass as not, so that what drafts cost decides."""
        usual = self._prospect.usual(arm)
        if usual is None:
            usual, _, _ = self._worth(arm, self._untaught.expect(arm, context), context)
        return usual + offer.score - offer.ready

    def _saved(self, offers: Mapping[ArmName, _Offer]) -> dict[ArmName, float]:
        """Seconds that the best arm would save, were all of them ready: beside the next best."""
        best, other = sorted(offers, key=lambda arm: offers[arm].ready, reverse=True)[:2]
        ahead = offers[best].ready - offers[other].ready
        ratio = math.exp(min(ahead / self._balance, 10.0))
        return {best: (ratio - 1.0) * offers[best].seconds}

    def _floor(self, arm: ArmName, context: RouteContext) -> float:
        if arm not in _SURE or self._whole:
            return 0.0
        return self._price.of(arm, context.width[arm], context.position)

    def _stale(self, offers: Mapping[ArmName, _Offer], context: RouteContext) -> ArmName | None:
        """An arm that is due for a probe."""
        for arm, offer in offers.items():
            if not self._probes.waited(arm):
                continue
            width = context.width[arm]
            if arm != "plain" and width <= len(context.forced) + 1:
                continue  # a draft of nothing but forced tokens would teach nothing
            # all of it, also where others are no readier: they will have to catch up then
            if not self._balance or self._probes.affords(arm, offer.catch_up, offer.seconds):
                return arm
        return None
