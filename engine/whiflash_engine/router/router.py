"""Which arm drafts the next round.

    score_a(k) = ln E_a(k) - balance * ln C_a(k) + bias[span][a]          the largest wins

E_a(k), the tokens that a round with k draft tokens of arm a is expected to commit, comes from the
policy; C_a(k), its expected seconds, from measured costs. The length is chosen with the arm: a
draft ends where one more token would cost more than it brings. balance
0 asks for tokens a round, 1 for tokens a second. bias is the user's prior in log units: +0.1
means "a tenth more tokens would be needed to change my mind".
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


@dataclass(frozen=True, slots=True)
class Decision:
    """drafts: how many tokens to draft. scores: per arm, at its best length; empty when there
    was no choice. The arm with the largest wins, except in a probe."""

    arm: ArmName
    drafts: int
    scores: Mapping[ArmName, float] = field(default_factory=dict)


class Router:
    """A policy, measured costs, and the span bias. Keeps what it learned between generations.

    Its choice never depends on drafts that were thrown away other than by what was accepted,
    nor on random numbers that sampling uses, so the output law cannot depend on it.
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
        candidates = self._policy.candidates(tuple(context.width))
        if len(candidates) == 1:
            return Decision(candidates[0], context.width[candidates[0]] - 1)
        found = {arm: self._score(arm, context) for arm in candidates}
        scores = {arm: score for arm, (score, _) in found.items()}
        stale = self._stale(candidates, context)
        if stale is not None:  # a probe drafts all it can, to see how far it gets
            return Decision(stale, context.width[stale] - 1, scores)
        best = max(candidates, key=scores.__getitem__)
        return Decision(best, found[best][1], scores)

    def learn(self, round: Round) -> None:
        """To be told every round, whoever picked it."""
        self._costs.learn(round)
        self._policy.learn(round)
        for arm, idle in self._idle.items():
            if arm == round.arm:
                self._idle[arm] = 0
                if idle >= self._patience[arm]:
                    self._patience[arm] = min(2 * self._patience[arm], _LAST_PROBE)
            elif arm in round.scores:  # it was on offer
                self._idle[arm] = idle + 1

    def _score(self, arm: ArmName, context: RouteContext) -> tuple[float, int]:
        """The arm's best score, and the draft length that reaches it."""
        width, expected = context.width[arm], self._policy.expect(arm, context)
        if self._whole:
            expected = expected[-1:]
        shortest = width - len(expected) + 1
        backlog, balance = context.backlog.get(arm, 0), self._balance
        seconds = self._costs.expected(arm, shortest, width, backlog) if balance else expected
        worth = [tokens / cost**balance for tokens, cost in zip(expected, seconds, strict=True)]
        best = max(worth)
        shorter = worth[::-1].index(best)  # of equals the longest
        bias = self._span_bias if FAVOURED.get(context.span) == arm else 0.0
        return math.log(best) + bias, width - 1 - shorter

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
