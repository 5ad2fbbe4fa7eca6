"""`whiflash-agents train router`: log rounds with the real engine, fit, say what it is worth."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from whiflash_agents.measure.positions import positions
from whiflash_agents.measure.prompts import Prompt, balanced, from_folder, listed, named
from whiflash_agents.measure.start import PromptStart
from whiflash_engine import linear
from whiflash_engine.config import RouterConfig, require
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConstraintError
from whiflash_engine.training.earlier_rounds import EarlierRounds
from whiflash_engine.training.loop import Report
from whiflash_engine.training.rounds import ARMS, DRAFTERS, Drafted, Rounds, log_rounds
from whiflash_engine.training.router import RouterOptions, fit
from whiflash_engine.training.router_net import startable
from whiflash_engine.training.router_worth import worth

_CONTEXT = 256
"""Tokens before the rounds that are replayed, about."""
_BIASES = (0.0, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class RouterRun:
    """Options of the command. per_kind: prompts of each kind. tokens: new ones a prompt."""

    model: str
    ar_drafter: str | None
    diffusion_drafter: str | None
    data: Path
    ids: Path | None
    without: Path | None
    run: Path
    output: Path
    per_kind: int
    tokens: int
    max_prompt: int
    epochs: int
    seed: int
    learning_rate: float = 1e-3
    start: Path | None = None
    earlier: Sequence[Path] = ()

    def __post_init__(self) -> None:
        for name in ("tokens", "max_prompt"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")


def train_router(run: RouterRun, report: Report) -> None:
    """Rounds that are in the run's folder already are not made again."""
    options = RouterOptions(
        epochs=run.epochs, seed=run.seed, learning_rate=run.learning_rate, start=run.start
    )
    earlier = [EarlierRounds.read(folder) for folder in run.earlier]
    rows = list(from_folder(run.data))
    if run.ids is not None:
        rows = named(rows, run.ids)
    if run.without is not None:
        left_out = set(listed(run.without, "without"))
        rows = [row for row in rows if row.id not in left_out]
    balanced(rows, run.per_kind)  # tells now if there are too few
    engine = Engine.load(
        run.model, ar_drafter=run.ar_drafter, diffusion_drafter=run.diffusion_drafter,
        router="plain", report=print,
    )  # fmt: skip
    for arm in DRAFTERS:
        require(arm in engine.drafters, "model", run.model, f"has no {arm} drafter to learn from")
    if run.start is not None:
        startable(run.start, engine.target.config.hidden_size)  # tells before rounds are logged
    prompts = balanced(rows, run.per_kind, lambda row: len(row.token_ids(engine)) <= run.max_prompt)
    settings = {
        "weights": engine.identity,
        "dtype": engine.target.precision,
        "drafters": "int8" if linear.rounds(engine.target.device, engine.target.dtype) else None,
        "seed": run.seed,
        "tokens": run.tokens,
        "arms": [*ARMS],
        "prompts": [row.id for row in prompts],
    }
    # as calibrated: logging lets some arms' costs follow their rounds, and others' not
    costs = engine.fresh_router(RouterConfig()).costs
    makers = [partial(_drafted, engine, row, run) for row in prompts]
    log_rounds(makers, run.run, settings, report)
    rounds = Rounds.read(run.run)
    for one in earlier:
        rounds = one.beside(rounds, [row.id for row in prompts])
    odds = fit(rounds, options, run.output, report)
    seconds = {
        arm: costs.expected(arm, 1, longest + 1, _CONTEXT)
        for arm, longest in zip(ARMS, rounds.positions, strict=True)
    }
    replayed = worth(rounds.split()[1], odds, seconds, _BIASES)
    report({f"tokens/s, {name}": value for name, value in replayed.items()})


def _drafted(engine: Engine, prompt: Prompt, run: RouterRun) -> Iterator[Drafted]:
    """Half of the prompts with tools or a schema under their grammar, as in use."""
    rng = random.Random(f"{run.seed} {prompt.id}")
    grammar = prompt.kind in ("tool", "json") and rng.random() < 0.5
    try:
        yield from positions(PromptStart(engine, prompt, run.tokens), grammar, rng)
    except ConstraintError:  # a schema that does not compile: without it
        yield from positions(PromptStart(engine, prompt, run.tokens), False, rng)
