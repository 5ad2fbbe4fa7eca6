"""Routers replayed on recorded texts, ready for JSON and for a table."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NotRequired, TypedDict

from whiflash_agents.measure.prompts import Kind, Prompt
from whiflash_agents.measure.recording import record
from whiflash_agents.measure.replay import Charges, foresight, replay
from whiflash_agents.measure.start import PromptStart
from whiflash_agents.measure.ways import Way
from whiflash_engine.config import ArmName, RouterConfig

if TYPE_CHECKING:
    from whiflash_engine.engine import Engine

FORESIGHT = "foresight"


class Replayed(TypedDict):
    """Of one method. tokens_per_second, also by kind: decoding alone. acceptance_length: tokens a
    round. share_of_rounds: by arm."""

    tokens_per_second: float
    by_kind: dict[Kind, float]
    # foresight has no rounds
    acceptance_length: NotRequired[float]
    share_of_rounds: NotRequired[dict[ArmName, float]]


@dataclass(slots=True)
class _Totals:
    tokens: Counter[Kind] = field(default_factory=Counter)
    seconds: defaultdict[Kind, float] = field(default_factory=lambda: defaultdict(float))
    rounds: Counter[ArmName] = field(default_factory=Counter)

    def figures(self) -> Replayed:
        made, rounds = self.tokens.total(), self.rounds.total()
        found = Replayed(
            tokens_per_second=made / sum(self.seconds.values()),
            by_kind={kind: self.tokens[kind] / self.seconds[kind] for kind in self.tokens},
        )
        if rounds:
            found["acceptance_length"] = made / rounds
            found["share_of_rounds"] = {arm: n / rounds for arm, n in self.rounds.items()}
        return found


def replayable(ways: Mapping[str, Way]) -> dict[str, Way]:
    """Those that differ in what their routers decide, and not in what a round does."""
    return {
        name: way
        for name, way in ways.items()
        if not (way.eager or way.full_layer or way.router.hindsight)
    }


def measure_replay(
    engine: Engine, prompts: Sequence[Prompt], tokens: int, ways: Mapping[str, Way],
    repeats: int, report: Callable[[str], None],
) -> dict[str, Replayed]:  # fmt: skip
    """Every way on every prompt, `repeats` times with other noise, each time by a router that has
    learned nothing yet; and `replay.foresight`, which is none of them. ConfigError for a way that
    the engine's drafters do not allow."""
    costs = engine.fresh_router(RouterConfig("plain")).costs
    charges = Charges(costs)
    fresh = {name: [way.fresh(engine) for _ in range(repeats)] for name, way in ways.items()}
    recordings = []
    for number, prompt in enumerate(prompts, 1):
        recordings.append(record(PromptStart(engine, prompt, tokens)))
        report(f"{number}/{len(prompts)} {prompt.id}")
    totals = {name: _Totals() for name in (*ways, FORESIGHT)}
    for name, routers in fresh.items():
        total = totals[name]
        for seed, router in enumerate(routers):
            noise = random.Random(seed)
            for recording in recordings:
                for told in replay(recording, router, charges, noise):
                    total.tokens[recording.kind] += len(told.round.tokens)
                    total.seconds[recording.kind] += told.seconds
                    total.rounds[told.round.arm] += 1
        report(name)
    for recording in recordings:
        totals[FORESIGHT].tokens[recording.kind] += len(recording.tokens)
        totals[FORESIGHT].seconds[recording.kind] += foresight(recording, charges)
    return {name: total.figures() for name, total in totals.items()}
