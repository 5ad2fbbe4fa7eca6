"""Routers that have learned from rounds what the target's hidden state says of the next draft.

    NeuralPolicy   for every arm and position of its draft, the chance that the token is accepted
                   once those before it are. Chances, unlike lengths, are not censored by how much
                   was drafted, and tell what every draft length would bring.
    DeltaPolicy    the published form (WhiFlash-Neural, arXiv 2606.07710): one number, how many
                   tokens more AR would commit than diffusion; AR if it exceeds tau.

Both are perceptrons with one hidden layer (d to d/8, GELU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, TypeAlias, get_args

import numpy as np

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round
from whiflash_engine.router.averages import AveragesPolicy, lengths
from whiflash_engine.router.perceptron import Array, Perceptron
from whiflash_engine.router.policies import Expected, RouteContext, ThresholdPolicy

SPANS: Final[tuple[Span, ...]] = get_args(Span)
STRUCTURE: Final = 7 + len(SPANS)
"""Numbers beside the hidden state."""
# Step of the correction of an arm's chances, in log odds a round and unit of surprise.
_CORRECTION: Final = 0.03
LARGEST: Final = 2.0


@dataclass(frozen=True, slots=True)
class RouterNet:
    """A perceptron over (hidden state, `structure`), and what its outputs stand for.

    positions: per arm, how many positions of a draft it knows; the outputs are their log odds,
    arm after arm.
    """

    perceptron: Perceptron
    positions: Mapping[ArmName, int]

    @property
    def parts(self) -> dict[ArmName, slice]:
        """Each arm's outputs."""
        ends = list(accumulate(self.positions.values(), initial=0))
        return {arm: slice(*pair) for arm, pair in zip(self.positions, pairwise(ends), strict=True)}


def structure(context: RouteContext) -> list[float]:
    """`STRUCTURE` numbers: the entropy, the span (one of `SPANS`), for how long it has lasted,
    whether a grammar holds, how much of the text's end has stood there before, and what AR,
    diffusion and retrieval got through lately."""
    recent = context.recent
    spans = [float(context.span == span) for span in SPANS]
    return [
        min(context.entropy, 8.0), *spans, math.log1p(context.since), float(context.constrained),
        math.log1p(context.matched), recent["ar"], recent["diffusion"], recent["retrieval"],
    ]  # fmt: skip


def features(context: RouteContext) -> Array:
    """(hidden size + `STRUCTURE`,), float32: all that the network sees."""
    assert context.hidden is not None
    hidden = context.hidden.float().numpy(force=True)
    return np.concatenate((hidden, structure(context)), dtype=np.float32)


class NeuralPolicy:
    """The network for the arms that it knows, running averages for the others.

    What the network says of an arm is shifted by how wrong it has been lately: a drafter that
    fits a user's text better or worse than the training prompts is found out in some rounds.
    """

    def __init__(self, net: RouterNet) -> None:
        self._net, self._parts = net.perceptron, net.parts
        self.averages = AveragesPolicy()
        self.shift = dict.fromkeys(net.positions, 0.0)
        self._seen: RouteContext | None = None
        self._odds: list[float] = []
        # position and odds of the round before, whichever text it was of: where texts take turns,
        # what idle arms are told of others is lost
        self._before: tuple[int, list[float]] = (-1, [])
        self._chances: dict[ArmName, list[float]] = {}

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        if self._seen is not context:
            self._seen, self._odds, self._chances = context, [], {}
        forced = len(context.forced)
        drafts = context.width[arm] - 1 - forced
        if arm not in self.shift or context.hidden is None or drafts < 1:
            return self.averages.expect(arm, context)
        chances = self._look(arm, context)
        if drafts > len(chances):
            chances = [*chances, *[chances[-1]] * (drafts - len(chances))]
        return lengths(chances[:drafts], forced)

    def learn(self, round: Round) -> None:
        accepted, drafted = round.tried
        if round.arm not in self.shift:
            self.averages.learn(round)
        chances = self._said(round)
        if chances is not None and drafted > 0:
            asked = min(accepted + 1, drafted, len(chances))
            surprise = min(accepted, asked) - sum(chances[:asked])
            if round.untried is not None and drafted < len(chances):
                surprise += round.untried - chances[drafted]
            shift = self.shift[round.arm] + _CORRECTION * surprise
            self.shift[round.arm] = max(-LARGEST, min(shift, LARGEST))
        if self._asked(round):
            self._before = (round.position, self._odds)
            self._seen, self._odds, self._chances = None, [], {}

    def _said(self, round: Round) -> list[float] | None:
        """The chances of the round's arm that were told for it, or would have been."""
        if self._asked(round):
            return self._chances.get(round.arm)
        position, odds = self._before
        if odds and position == round.position and round.arm in self.shift:
            return self._shifted(round.arm, odds)
        return None

    def _asked(self, round: Round) -> bool:
        """Whether it is the round that was asked for last."""
        return self._seen is not None and self._seen.position == round.position

    def _look(self, arm: ArmName, context: RouteContext) -> list[float]:
        """The arm's chances; the network runs once a round."""
        if not self._odds:
            assert context.hidden is not None
            self._odds = self._net(context.hidden, structure(context))
        if arm not in self._chances:
            self._chances[arm] = self._shifted(arm, self._odds)
        return self._chances[arm]

    def _shifted(self, arm: ArmName, odds: Sequence[float]) -> list[float]:
        shift = self.shift[arm]
        # as a tangent, for an exponential could overflow
        return [0.5 + 0.5 * math.tanh(0.5 * (one + shift)) for one in odds[self._parts[arm]]]


Learner: TypeAlias = AveragesPolicy | NeuralPolicy
"""What learns from its rounds."""


class DeltaPolicy(ThresholdPolicy):
    """AR if the network's one number exceeds tau, else diffusion; without a hidden state
    diffusion."""

    def __init__(self, net: Perceptron, threshold: float) -> None:
        super().__init__(threshold)
        self._net = net

    def signal(self, context: RouteContext) -> float:
        if context.hidden is None:
            return -math.inf
        return self._net(context.hidden)[0]
