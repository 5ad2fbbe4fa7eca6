"""What a router would have made of logged prefixes: tokens and seconds, draft by draft.

A replay, not a run: every round starts where the log says, so that all routers judge the same
prefixes, and an oracle that knows every draft's fate can be asked as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from whiflash_engine.config import ArmName
from whiflash_engine.router.neural import SPANS, STRUCTURE
from whiflash_engine.router.scales import FAVOURED
from whiflash_engine.training.rounds import ARMS, DRAFTERS, Rounds

Seconds = Mapping[ArmName, Sequence[float]]
"""Per arm, of a round with 0, 1, 2, ... draft tokens."""


def expected(odds: Tensor, positions: Sequence[int]) -> list[Tensor]:
    """Per arm [N,K+1]: tokens that a round with 0..K draft tokens is expected to commit."""
    found = []
    for part in torch.split(odds, list(positions), dim=1):
        lengths = 1.0 + part.sigmoid().cumprod(1).cumsum(1)
        found.append(torch.cat([torch.ones(len(part), 1), lengths], 1))
    return found


def worth(
    rounds: Rounds, odds: Tensor, seconds: Seconds, biases: Sequence[float] = (0.0,)
) -> dict[str, float]:
    """Tokens per second of routers over the same prefixes, each as often as rounds begin there,
    without those from which a drafter had no turn: the net's for each span bias, either drafter's
    with whole drafts, and the oracle's."""
    both = (rounds.drafted[:, : len(DRAFTERS)] > 0).all(1)
    made = [_made(rounds, arm)[both] for arm in range(len(ARMS))]
    costs = [
        torch.tensor(seconds[arm][: count + 1])
        for arm, count in zip(ARMS, rounds.positions, strict=True)
    ]
    guesses = expected(odds[both], rounds.positions)
    tokens = torch.cat(made, 1)
    cost = torch.cat([c.expand(len(tokens), -1) for c in costs], 1)
    weight = rounds.weight[both]
    offered = _offered(rounds)[both].log()  # 0 or -inf
    scores = torch.cat([guess.log() for guess in guesses], 1) - cost.log() + offered
    favoured = _favoured(rounds)[both]
    found = {f"bias {b:g}": _rate(tokens, cost, scores + b * favoured, weight) for b in biases}
    found["oracle"] = _rate(tokens, cost, tokens.log() - cost.log() + offered, weight)
    for arm, m, c in zip(DRAFTERS, made, costs, strict=False):
        found[arm] = float((weight * m[:, -1]).sum() / (c[-1] * weight.sum()))
    return {name: round(value, 2) for name, value in found.items()}


def _favoured(rounds: Rounds) -> Tensor:
    """[N, columns of all arms]: 1 where the span bias favours the arm."""
    spans = rounds.features[:, -STRUCTURE + 1 :][:, : len(SPANS)].argmax(1).tolist()
    favoured = [FAVOURED.get(SPANS[span]) for span in spans]
    columns = [
        torch.tensor([float(one == arm) for one in favoured])[:, None].expand(-1, count + 1)
        for arm, count in zip(ARMS, rounds.positions, strict=True)
    ]
    return torch.cat(columns, 1)


def _offered(rounds: Rounds) -> Tensor:
    """[N, columns of all arms]: 1 where so many draft tokens were to be had, else 0. A drafter
    always drafts as much as is wanted; a copy is as long as it is, and where there is none it
    stands for plain decoding, which is always on offer."""
    columns = []
    for arm, count in enumerate(rounds.positions):
        least = rounds.drafted[:, arm, None] if ARMS[arm] not in DRAFTERS else count
        columns.append((torch.arange(count + 1).expand(len(rounds.prompt), -1) <= least).float())
    return torch.cat(columns, 1)


def _made(rounds: Rounds, arm: int) -> Tensor:
    """[N,K+1]: committed tokens of a round with 0..K draft tokens, bonus counted. What was not
    drafted, at a text's end, could not have passed."""
    place = torch.arange(rounds.positions[arm] + 1)
    return 1.0 + torch.minimum(place, rounds.accepted[:, arm, None])


def _rate(tokens: Tensor, cost: Tensor, scores: Tensor, weight: Tensor) -> float:
    best = scores.argmax(1, keepdim=True)
    made, spent = tokens.gather(1, best)[:, 0], cost.gather(1, best)[:, 0]
    return float((weight * made).sum() / (weight * spent).sum())
