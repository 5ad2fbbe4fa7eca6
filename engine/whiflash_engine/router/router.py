"""Which arm drafts the next round.

    score_a(k) = ln E_a(k) - balance * ln C_a(k) + bias[span][a]          the largest wins

E_a(k), the tokens that a round with k draft tokens of arm a is expected to commit, comes from the
policy; C_a(k), its expected seconds, from measured costs, and what getting ready costs it
(`Rental`). balance 0 asks for tokens a round, 1 for tokens a second. bias is the user's prior in
log units: +0.1 means "a tenth more tokens would be needed to change my mind".

The length is chosen with the arm, where it is one that copies: the k of the largest score. A
drafter finds out as it drafts how far it can be trusted (`Ending`): it may draft all that is on
offer, and is told what a token costs (`Price`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.policies import Policy, RouteContext
from whiflash_engine.router.price import Price
from whiflash_engine.router.rental import Rental

__all__ = ["Decision", "RouteContext", "Router"]

FAVOURED: Final[Mapping[Span, ArmName]] = {
    "json": "diffusion",
    "tool_call": "diffusion",
    "reasoning": "ar",
}
"""Whom the span bias favours."""
# Rounds that an arm may go unused before it is tried again, doubled at each try.
_FIRST_PROBE: Final = 4
_LAST_PROBE: Final = 128
_SURE: Final = frozenset[ArmName](("ar", "diffusion"))
"""Arms that say how sure they are."""


@dataclass(frozen=True, slots=True)
class Decision:
    """drafts: how many tokens to draft at most. scores: per arm, at its best length; empty when
    there was no choice. The arm with the largest wins, except in a probe. floor: of
    `Drafter.propose`."""

    arm: ArmName
    drafts: int
    scores: Mapping[ArmName, float] = field(default_factory=dict)
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class _Offer:
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
        costs: CostModel | None = None,
    ) -> None:
        """probed: arms to try again when they have not been used for long. without: never worth
        getting a draft ready for. whole_drafts: always draft all that is on offer.

        costs: measured seconds, to be shared by routers over the same drafters.
        """
        self._policy = policy
        self._balance = balance
        self._span_bias = span_bias
        self._costs = CostModel() if costs is None else costs
        self._without = frozenset(without)
        self._whole = whole_drafts
        self._price, self._rental = Price(self._costs, balance), Rental()
        self._losing: dict[ArmName, float] = {}  # by the round that was picked last
        self._idle = dict.fromkeys(probed, 0)
        # what plain decoding brings is known; what it costs may change with the machine
        self._patience = {arm: _LAST_PROBE if arm == "plain" else _FIRST_PROBE for arm in probed}

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
        self._losing = {}
        if len(candidates) == 1:
            (only,) = candidates
            # a seed repeats a text under one arm: no clock may end its drafts
            floor = 0.0 if context.sampled else self._floor(only, context)
            return Decision(only, width[only] - 1, floor=floor)
        offers = {arm: self._offer(arm, context) for arm in candidates}
        scores = {arm: offer.score for arm, offer in offers.items()}
        stale = self._stale(candidates, context)
        if stale is not None:  # a probe drafts all it can, to see how far it gets
            return Decision(stale, width[stale] - 1, scores)
        best = max(candidates, key=scores.__getitem__)
        chosen = offers[best]
        self._losing = {
            arm: (offer.ready - chosen.score) * chosen.seconds / self._balance
            for arm, offer in offers.items()
            if arm != best and self._balance and offer.ready > chosen.score
        }  # fmt: skip
        return Decision(best, chosen.drafts, scores, self._floor(best, context))

    def learn(self, round: Round) -> None:
        """To be told every round, whoever picked it."""
        self._costs.learn(round)
        self._policy.learn(round)
        self._price.learn(round)
        for arm, seconds in self._losing.items():
            self._rental.lost(arm, seconds)
        self._losing = {}
        if round.seconds.catch_up > 0:
            self._rental.paid(round.arm)
        for arm, idle in self._idle.items():
            if arm == round.arm:
                self._idle[arm] = 0
                if idle >= self._patience[arm]:
                    self._patience[arm] = min(2 * self._patience[arm], _LAST_PROBE)
            elif arm in round.scores:  # it was on offer
                self._idle[arm] = idle + 1

    def _offer(self, arm: ArmName, context: RouteContext) -> _Offer:
        """The arm's best score, and the draft length that reaches it."""
        width, expected = context.width[arm], self._policy.expect(arm, context)
        if self._whole:
            expected = expected[-1:]
        balance, costs = self._balance, self._costs
        seconds = costs.expected(arm, width - len(expected) + 1, width) if balance else expected
        worth = [tokens / cost**balance for tokens, cost in zip(expected, seconds, strict=True)]
        best = max(worth)
        shorter = worth[::-1].index(best)  # of equals the longest
        bias = self._span_bias if FAVOURED.get(context.span) == arm else 0.0
        ready, spent = math.log(best) + bias, seconds[-1 - shorter]
        late = self._rental.left(arm, costs.catch_up(arm, context.backlog.get(arm, 0), width))
        score = ready - balance * math.log1p(late / spent) if balance and late else ready
        drafts = width - 1 if arm in _SURE else width - 1 - shorter
        return _Offer(score, drafts, ready, spent)

    def _floor(self, arm: ArmName, context: RouteContext) -> float:
        if arm not in _SURE or self._whole:
            return 0.0
        return self._price.of(arm, context.width[arm])

    def _stale(self, candidates: Sequence[ArmName], context: RouteContext) -> ArmName | None:
        """An arm that is due for a probe.

        An arm that is not used gives no signal, so that one bad start would condemn it for
        good. Trying it after 4, 8, 16, ... and then every 128 rounds costs next to nothing
        and finds out when the text or the machine has changed.
        """
        width, forced = context.width, len(context.forced)
        due = (a for a in candidates if a in self._idle and self._idle[a] >= self._patience[a])
        # a draft of nothing but forced tokens would teach nothing
        return next((a for a in due if a == "plain" or width[a] > forced + 1), None)
