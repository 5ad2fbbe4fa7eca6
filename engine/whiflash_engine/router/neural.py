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
_ONE_OF: Final = {span: tuple(float(span == one) for one in SPANS) for span in SPANS}
# Step of the correction of an arm's chances, in log odds a round and unit of surprise.
_CORRECTION: Final = 0.03
LARGEST: Final = 2.0
# Rounds that were asked about and may still be told.
_UNLEARNED: Final = 64
_Place: TypeAlias = tuple[int, float]


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
    return [
        min(context.entropy, 8.0), *_ONE_OF[context.span], math.log1p(context.since),
        float(context.constrained), math.log1p(context.matched),
        recent["ar"], recent["diffusion"], recent["retrieval"],
    ]  # fmt: skip


def features(context: RouteContext) -> Array:
    """(hidden size + `STRUCTURE`,), float32: all that the network sees."""
    assert context.hidden is not None
    hidden = context.hidden.float().numpy(force=True)
    return np.concatenate((hidden, structure(context)), dtype=np.float32)


class NeuralPolicy:
    """The network for the arms that it knows, running averages for the others.

    What the network says of an arm is shifted by how wrong it has been lately: a drafter that
    fits a user's text better or worse than the training prompts is found out in some rounds that
    it was asked about.
    """

    def __init__(self, net: RouterNet) -> None:
        self._net, self._parts = net.perceptron, net.parts
        self.averages = AveragesPolicy()
        self.shift = dict.fromkeys(net.positions, 0.0)
        self._seen: RouteContext | None = None
        self._odds: list[float] = []  # of that one; empty before the network has run
        # of rounds that are still to be learned from, and of the last one that was
        self._told: dict[_Place, list[float]] = {}
        self._before: tuple[_Place, list[float]] = ((-1, 0.0), [])

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        if self._seen is not context:
            self._seen, self._odds = context, []
            self._told.pop(_place(context), None)  # of a round that was given up
        forced = len(context.forced)
        drafts = context.width[arm] - 1 - forced
        if arm not in self.shift or context.hidden is None or drafts < 1:
            return self.averages.expect(arm, context)
        odds = (self._odds or self._look(context))[self._parts[arm]][:drafts]
        odds += odds[-1:] * (drafts - len(odds))
        return lengths(_chances(odds, self.shift[arm]), forced)

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
        self._seen = None

    def _said(self, round: Round) -> list[float] | None:
        """The chances of the round's arm, if the network was asked about that round."""
        place = _place(round)
        if place in self._told:
            self._before = (place, self._told.pop(place))
        known, odds = self._before  # the same round once more: of an arm that was idle in it
        if known != place or round.arm not in self.shift:
            return None
        return _chances(odds[self._parts[round.arm]], self.shift[round.arm])

    def _look(self, context: RouteContext) -> list[float]:
        """Run the network, once a round."""
        assert context.hidden is not None
        self._odds = self._net(context.hidden, structure(context))
        self._told[_place(context)] = self._odds
        if len(self._told) > _UNLEARNED:
            del self._told[next(iter(self._told))]
        return self._odds


def _place(of: RouteContext | Round) -> _Place:
    """Two texts that share these say the same so far, or nearly always."""
    return of.position, of.entropy


def _chances(odds: Sequence[float], shift: float) -> list[float]:
    # as a tangent, for an exponential could overflow
    return [0.5 + 0.5 * math.tanh(0.5 * (one + shift)) for one in odds]


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
