"""Routers that have learned from rounds what the target's hidden state says of the next draft.

    NeuralPolicy   for every arm and position of its draft, the chance that the token is accepted
                   once those before it are. Chances, unlike lengths, are not censored by how much
                   was drafted, and tell what every draft length would bring.
    DeltaPolicy    the published form (WhiFlash-Neural, arXiv 2606.07710): one number, how many
                   tokens more AR would commit than diffusion; AR if it exceeds tau.

Both are perceptrons with one hidden layer (d to d/8, GELU). They run in numpy: for so small a
network torch's operators cost more than their arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round
from whiflash_engine.router.averages import AveragesPolicy, lengths
from whiflash_engine.router.policies import Expected, RouteContext, ThresholdPolicy

Array = NDArray[np.float32]

SPANS: Final[tuple[Span, ...]] = get_args(Span)
STRUCTURE: Final = 7 + len(SPANS)
"""Numbers beside the hidden state: see `features`."""
# Step of the correction of an arm's chances, in log odds a round and unit of surprise.
_CORRECTION: Final = 0.03
LARGEST: Final = 2.0


@dataclass(frozen=True, slots=True)
class Perceptron:
    """x -> second @ gelu(first @ x + first_bias) + second_bias; float32, GELU by tanh."""

    first: Array
    first_bias: Array
    second: Array
    second_bias: Array

    def __call__(self, x: Array) -> Array:
        h = self.first @ x + self.first_bias
        h *= 0.5 + 0.5 * np.tanh(h * (0.7978845608 + 0.0356774081 * h * h))
        out: Array = self.second @ h + self.second_bias
        return out


@dataclass(frozen=True, slots=True)
class RouterNet:
    """A perceptron over (hidden state, structure), and what its outputs stand for.

    positions: per arm, how many positions of a draft it knows; the outputs are their log odds,
    arm after arm.
    """

    perceptron: Perceptron
    positions: Mapping[ArmName, int]

    def __call__(self, features: Array) -> dict[ArmName, list[float]]:
        """Log odds by arm."""
        odds: list[float] = self.perceptron(features).tolist()
        start, found = 0, dict[ArmName, list[float]]()
        for arm, count in self.positions.items():
            found[arm] = odds[start : start + count]
            start += count
        return found


def features(context: RouteContext) -> Array:
    """(hidden size + `STRUCTURE`,): the target's state, then the entropy, the span (one of
    `SPANS`), for how long it has lasted, whether a grammar holds, how much of the text's end
    has stood there before, and what AR, diffusion and retrieval got through lately."""
    assert context.hidden is not None
    recent = context.recent
    spans = [float(context.span == span) for span in SPANS]
    own = [
        min(context.entropy, 8.0), *spans, math.log1p(context.since), float(context.constrained),
        math.log1p(context.matched), recent["ar"], recent["diffusion"], recent["retrieval"],
    ]  # fmt: skip
    hidden: Array = context.hidden.float().numpy(force=True)
    return np.concatenate((hidden, np.array(own, dtype=np.float32)))


class NeuralPolicy:
    """The network for the arms that it knows, running averages for the others.

    What the network says of an arm is shifted by how wrong it has been lately: a drafter that
    fits a user's text better or worse than the training prompts is found out in some rounds.
    """

    def __init__(self, net: RouterNet) -> None:
        self._net = net
        self.averages = AveragesPolicy()
        self.shift = dict.fromkeys(net.positions, 0.0)
        self._seen: RouteContext | None = None
        self._chances: dict[ArmName, list[float]] = {}

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        forced = len(context.forced)
        drafts = context.width[arm] - 1 - forced
        if arm not in self.shift or context.hidden is None or drafts < 1:
            return self.averages.expect(arm, context)
        chances = self._look(context)[arm]
        beyond = [chances[-1]] * (drafts - len(chances))
        return lengths([*chances[:drafts], *beyond], forced)

    def learn(self, round: Round) -> None:
        accepted, drafted = round.tried
        if round.arm not in self.shift:
            self.averages.learn(round)
        chances = self._chances.get(round.arm)
        if chances is not None and drafted > 0:
            asked = min(accepted + 1, drafted, len(chances))
            surprise = min(accepted, asked) - sum(chances[:asked])
            shift = self.shift[round.arm] + _CORRECTION * surprise
            self.shift[round.arm] = max(-LARGEST, min(shift, LARGEST))
        self._chances = {}

    def _look(self, context: RouteContext) -> dict[ArmName, list[float]]:
        """The chances by arm, computed once a round."""
        if self._seen is not context or not self._chances:
            self._chances = {
                arm: _chances(odds, self.shift[arm])
                for arm, odds in self._net(features(context)).items()
            }
            self._seen = context
        return self._chances


Learner: TypeAlias = AveragesPolicy | NeuralPolicy
"""What learns from its rounds."""


def _chances(odds: Sequence[float], shift: float) -> list[float]:
    """Of log odds. As a tangent, for an exponential could overflow."""
    return [0.5 + 0.5 * math.tanh(0.5 * (one + shift)) for one in odds]


class DeltaPolicy(ThresholdPolicy):
    """AR if the network's one number exceeds tau, else diffusion; without a hidden state
    diffusion."""

    def __init__(self, net: Perceptron, threshold: float) -> None:
        super().__init__(threshold)
        self._net = net

    def signal(self, context: RouteContext) -> float:
        if context.hidden is None:
            return -math.inf
        return float(self._net(context.hidden.float().numpy(force=True))[0])
