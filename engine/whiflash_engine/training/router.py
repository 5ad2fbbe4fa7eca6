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
from whiflash_engine.router.neural import STRUCTURE
from whiflash_engine.training.loop import Report
from whiflash_engine.training.model_files import write_json, write_tensors
from whiflash_engine.training.optim import rate
from whiflash_engine.training.rounds import ARMS, Rounds


@dataclass(frozen=True)
class RouterOptions:
    epochs: int = 12
    batch: int = 256
    learning_rate: float = 1e-3
    dropout: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")


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
    mean, spread = known.features.mean(0), known.features.std(0)
    # what never varied has taught nothing, and says nothing when one day it does
    scale = torch.where(spread > 1e-3, 1.0 / spread.clamp_min(1e-2), 0.0)
    net = _network(rounds, options.dropout)
    optimiser = torch.optim.AdamW(net.parameters(), lr=options.learning_rate, weight_decay=0.1)
    x, y = (known.features - mean) * scale, (unseen.features - mean) * scale
    asked, passed = known.trials()
    weight = known.weight[:, None]
    rates = _log_odds((weight * (passed & asked)).sum(0), (weight * asked).sum(0))
    report(
        {"prefixes": len(x), "held_out": len(y), "rates": _loss(rates.expand(len(y), -1), unseen)}
    )
    best, kept, done, steps = float("inf"), _copy(net), 0, -(-len(x) // options.batch)
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
        found = _loss(_odds(net, y), unseen)
        report({"epoch": epoch + 1, "loss": found})
        if found < best:
            best, kept = found, _copy(net)
    net.load_state_dict(kept)
    _export(net, mean, scale, rounds, output)
    return _odds(net, y)


def _network(rounds: Rounds, dropout: float) -> nn.Sequential:
    """d + structure -> d/8 -> GELU -> one log odds per arm and position."""
    inputs = rounds.features.shape[1]
    hidden = max((inputs - STRUCTURE) // 8, 8)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(approximate="tanh"), nn.Dropout(dropout),
        nn.Linear(hidden, sum(rounds.positions)),
    )  # fmt: skip


@torch.no_grad()
def _odds(net: nn.Sequential, x: Tensor) -> Tensor:
    net.eval()
    odds: Tensor = net(x)
    return odds


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


def _export(net: nn.Sequential, mean: Tensor, scale: Tensor, rounds: Rounds, output: Path) -> None:
    state = net.state_dict()
    write_tensors(
        output / "model.safetensors",
        {"mean": mean, "scale": scale, "fc1.weight": state["0.weight"],
         "fc1.bias": state["0.bias"], "fc2.weight": state["3.weight"],
         "fc2.bias": state["3.bias"]},
    )  # fmt: skip
    known = {arm: n for arm, n in zip(ARMS, rounds.positions, strict=True) if n}
    write_json(
        output / "config.json",
        {"architectures": ["WhiFlashRouter"], "hidden_size": len(mean) - STRUCTURE,
         "structure": STRUCTURE, "positions": known},
    )  # fmt: skip
