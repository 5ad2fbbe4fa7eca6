"""Fit a router to prefixes from which every arm has drafted.

WhiFlash-Neural (arXiv 2606.07710) regresses one number, how many tokens more AR commits than
diffusion. This one learns every position's chance for every arm instead: that gives expected
tokens for every draft length, to be divided by what a round costs on the machine at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiflash_engine.config import require
from whiflash_engine.training.loop import Report
from whiflash_engine.training.optim import rate
from whiflash_engine.training.rounds import Rounds
from whiflash_engine.training.router_net import Trainee


@dataclass(frozen=True)
class RouterOptions:
    epochs: int = 12
    batch: int = 256
    learning_rate: float = 1e-3
    dropout: float = 0.3
    seed: int = 0
    start: Path | None = None
    """A router to go on from, such as that of the drafters before; None begins anew."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        fine = 0 < self.learning_rate < float("inf")
        require(fine, "learning_rate", self.learning_rate, "must be above zero")


def fit(rounds: Rounds, options: RouterOptions, output: Path, report: Report) -> Tensor:
    """Write a router folder. Returns its log odds [M,P] for the M held-out prefixes.

    The epoch that fits those best is kept. Losses are nats a trial; "rates" is that of knowing
    every position's average and nothing else. ConfigError if there are too few prompts.
    """
    known, unseen = rounds.split()
    prompts = len(torch.unique(rounds.prompt))
    enough = len(known.prompt) > 1 and len(unseen.prompt) > 0
    require(enough, "prompts", prompts, "too few had rounds to learn from and to hold out")
    torch.manual_seed(options.seed)
    if options.start is None:
        trainee = Trainee.fresh(known, options.dropout)
    else:
        trainee = Trainee.going_on(options.start, known, options.dropout)
    net = trainee.net
    optimiser = torch.optim.AdamW(net.parameters(), lr=options.learning_rate, weight_decay=0.1)
    x, y = trainee.normed(known.features), trainee.normed(unseen.features)
    asked, passed = known.trials()
    weight = known.weight[:, None]
    rates = _log_odds((weight * (passed & asked)).sum(0), (weight * asked).sum(0))
    report(
        {"prefixes": len(x), "held_out": len(y), "rates": _loss(rates.expand(len(y), -1), unseen)}
    )
    best, kept, done, steps = float("inf"), _copy(net), 0, -(-len(x) // options.batch)
    if options.start is not None:
        best = _loss(trainee.odds(y), unseen)
        report({"epoch": 0, "loss": best})
    for epoch in range(options.epochs):
        net.train()
        for rows in torch.split(torch.randperm(len(x)), options.batch):
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * rate(done / (steps * options.epochs))
            done += 1
            loss = _cross_entropy(net(x[rows]), asked[rows], passed[rows], known.weight[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        found = _loss(trainee.odds(y), unseen)
        report({"epoch": epoch + 1, "loss": found})
        if found < best:
            best, kept = found, _copy(net)
    net.load_state_dict(kept)
    trainee.export(rounds, output)
    return trainee.odds(y)


def _copy(net: nn.Sequential) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _loss(odds: Tensor, rounds: Rounds) -> float:
    return round(float(_cross_entropy(odds, *rounds.trials(), rounds.weight)), 4)


def _cross_entropy(odds: Tensor, asked: Tensor, passed: Tensor, weight: Tensor) -> Tensor:
    """Mean over the trials that were asked, each weighing as its prefix does."""
    weights = weight[:, None] * asked
    found = F.binary_cross_entropy_with_logits(odds, passed.float(), weights, reduction="sum")
    return found / weights.sum()


def _log_odds(passed: Tensor, asked: Tensor) -> Tensor:
    share = (passed + 0.5) / (asked + 1.0)
    return (share / (1 - share)).log()
