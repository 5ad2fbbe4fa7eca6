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
from typing import Final, TypeAlias, get_args

from whiflash_engine.config import ArmName, RouterConfig, RouterName, Span, require
from whiflash_engine.events import Round
from whiflash_engine.router.averages import EntropyPolicy
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.neural import DeltaPolicy, NeuralPolicy, Perceptron, RouterNet
from whiflash_engine.router.policies import (
    Policy,
    RandomPolicy,
    RouteContext,
    StaticPolicy,
    ThresholdPolicy,
)

__all__ = ["Decision", "Learner", "RouteContext", "Router", "build_router"]

Learner: TypeAlias = EntropyPolicy | NeuralPolicy
"""What learns from its rounds."""

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
        """probed: arms to try again when they have not been used for long. without: never used.
        whole_drafts: always draft all that is on offer.

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

    def pick(self, context: RouteContext, arms: Sequence[ArmName]) -> Decision:
        """arms: those on offer in this round, with their `width` and `backlog` in `context`."""
        candidates = self._policy.candidates([arm for arm in arms if arm not in self._without])
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
            elif arm in round.scores:  # it was on offer
                self._idle[arm] = idle + 1
            if arm == round.arm and idle >= self._patience[arm]:
                self._patience[arm] = min(2 * self._patience[arm], _LAST_PROBE)

    def _score(self, arm: ArmName, context: RouteContext) -> tuple[float, int]:
        """The arm's best score, and the draft length that reaches it."""
        width, expected = context.width[arm], self._policy.expect(arm, context)
        if self._whole:
            expected = expected[-1:]
        shortest = width - len(expected) + 1
        backlog, balance = context.backlog.get(arm, 0), self._balance
        seconds = self._costs.expected(arm, shortest, width, backlog) if balance else expected
        best, drafts = 0.0, 0
        for i, (tokens, cost) in enumerate(zip(expected, seconds, strict=True)):
            worth = tokens / cost**balance
            if worth >= best:  # of equals the longest
                best, drafts = worth, shortest + i - 1
        return math.log(best) + self._span_bias * (FAVOURED.get(context.span) == arm), drafts

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


def build_router(
    config: RouterConfig,
    arms: Sequence[ArmName],
    costs: CostModel | None = None,
    net: RouterNet | Perceptron | None = None,
    known: Sequence[Learner] = (),
) -> Router:
    """The router that `config` names, over the arms that are loaded. net: a learned one. known:
    what has learned of these arms already; the first of the kind that the router needs goes on
    learning in it. ConfigError if it needs what is not there."""
    for arm in arms:
        require(arm in get_args(ArmName), "arm", arm, f"must be one of {get_args(ArmName)}")
    name = config.name
    published = name == "neural" and isinstance(net, Perceptron)
    for arm in _needed(name, published):
        require(arm in arms, "router", name, f"needs the {arm} drafter, which is not loaded")
    if name == "ar" or name == "diffusion" or name == "retrieval" or name == "plain":
        return Router(StaticPolicy(name), costs=costs)
    if name == "random":
        return Router(RandomPolicy(config.seed), costs=costs)
    if name == "entropy":
        policy = ThresholdPolicy(config.entropy_threshold)
        return Router(policy, span_bias=config.span_bias, costs=costs)
    if name == "neural":
        require(net is not None, "router", name, "needs a neural_router, and none is loaded")
        if isinstance(net, Perceptron):
            delta = DeltaPolicy(net, config.delta_threshold)
            return Router(delta, span_bias=config.span_bias, costs=costs)
    learned = config.learned or name == "neural"
    unused = learned and isinstance(net, Perceptron)  # one that was asked for, and says too little
    require(not unused, "router", name, 'the neural_router is a published one: it needs "neural"')
    fresh = NeuralPolicy(net) if learned and isinstance(net, RouterNet) else EntropyPolicy()
    return Router(
        next((policy for policy in known if type(policy) is type(fresh)), fresh),
        balance=config.balance,
        span_bias=config.span_bias,
        probed=[arm for arm in arms if arm != "forced"],
        without=() if config.retrieval else ("retrieval",),
        whole_drafts=config.whole_drafts,
        costs=costs,
    )


def _needed(name: RouterName, published: bool) -> tuple[ArmName, ...]:
    """Drafters without which a router would be another one."""
    if name == "entropy" or published:
        return ("ar", "diffusion")
    return (name,) if name == "ar" or name == "diffusion" else ()
