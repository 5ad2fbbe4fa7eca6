"""The next tokens of many replies at once: greedy or at a temperature, some under a grammar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whiflash_engine.constraint import Constraint
from whiflash_engine.errors import NumericsError


class Grammar:
    """A reply's constraint, and where it left no choice or overruled the model."""

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.forced: list[int] = []
        self.overruled: list[int] = []

    def allowed(self, best: int) -> Tensor:
        """bool (V,) on the CPU: what may come next; `best` is what the model would like to."""
        with torch.device("cpu"):
            _, rows = self.constraint.masks(())
            allowed = rows[0]
            if int(allowed.sum()) == 1:
                self.forced.append(self.constraint.length)
            if not allowed[best]:
                self.overruled.append(self.constraint.length)
        return allowed


@dataclass(frozen=True, slots=True)
class Choice:
    """How one reply's token is chosen: greedily at temperature 0, else by a number in [0, 1)."""

    temperature: float
    number: float
    grammar: Grammar | None


def choose(logits: Tensor, asked: Sequence[Choice]) -> list[int]:
    """(n,V) logits and n choices -> n tokens, with which the grammars have moved on."""
    best, scores = logits.argmax(-1).tolist(), logits.float()
    bound = [(row, one.grammar) for row, one in enumerate(asked) if one.grammar is not None]
    if bound:
        rows = [row for row, _ in bound]
        mask = torch.stack([grammar.allowed(best[row]) for row, grammar in bound])
        scores[rows] = scores[rows].masked_fill(~mask.to(scores.device), float("-inf"))
        best = scores.argmax(-1).tolist()
    warm = [row for row, one in enumerate(asked) if one.temperature > 0]
    if warm:
        heat = torch.tensor([asked[row].temperature for row in warm])
        drawn = _draw(
            torch.softmax(scores[warm] / heat[:, None], -1), [asked[row].number for row in warm]
        )
        for row, token in zip(warm, drawn, strict=True):
            best[row] = token
    for row, grammar in bound:
        grammar.constraint.commit([best[row]])
    return [int(token) for token in best]


def _draw(weights: Tensor, numbers: Sequence[float]) -> list[int]:
    """Inverse CDF of every row: (n,V) weights and n numbers in [0,1) -> n indices; `draw` of
    `sampling`, for many at once. NumericsError unless each row has a positive finite sum."""
    cdf = weights.cumsum(dim=1, dtype=torch.float64)
    edges = torch.tensor(numbers, dtype=torch.float64)[:, None] * cdf[:, -1:]
    places = torch.searchsorted(cdf, edges, right=True)
    totals, found = torch.cat((cdf[:, -1:], places.double()), dim=1).T.tolist()
    if not all(0.0 < total < math.inf for total in totals):
        raise NumericsError("the target's logits are not finite, or no allowed token has one")
    return [int(place) for place in found]
