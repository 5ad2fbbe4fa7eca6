"""What the drafters are worth: acceptance length by kind, who wins where, clamped fill-in."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

from whiflash_agents.measure.pairs import Filled, Pair, filled, pairs
from whiflash_agents.measure.prompts import Prompt
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import RouterConfig, RouterName
from whiflash_engine.errors import ConstraintError

if TYPE_CHECKING:
    from whiflash_engine.engine import Engine

ARMS: tuple[RouterName, ...] = ("ar", "diffusion")


class Better(TypedDict):
    """Of the rounds that both drafters began from the same prefix."""

    rounds: int
    ar_better: float
    diffusion_better: float
    best_of_both: float
    """AL of a router that always knows."""


class Drafting(TypedDict):
    """Keys are kinds (`json`, `json grammar`), `all` and, for pairs, spans as well."""

    prompts: int
    tokens: int
    acceptance_length: dict[str, dict[str, float]]
    pairs: dict[str, Better]
    fill_in: dict[str, float]


def measure_drafting(
    engine: Engine, prompts: Sequence[Prompt], tokens: int, report: Callable[[str], None]
) -> Drafting:
    """Greedy. Tool and json prompts are decoded freely and under their grammar."""
    lengths: dict[str, dict[str, list[int]]] = {}
    found: dict[str, list[Pair]] = {}
    fills: dict[bool, list[Filled]] = {False: [], True: []}
    rng = random.Random(0)
    for number, prompt in enumerate(prompts, 1):
        start = PromptStart(engine, prompt, tokens)
        for grammar in (False, True):
            if grammar and not (prompt.kind in ("tool", "json") and _compiles(engine, prompt)):
                continue
            group = f"{prompt.kind} grammar" if grammar else prompt.kind
            groups = (group,) if grammar else (group, "all")
            for arm in ARMS:
                whole = RouterConfig(arm, whole_drafts=True)
                made = [len(r.tokens) for r in start.run(whole, grammar)]
                for name in groups:
                    lengths.setdefault(name, {}).setdefault(arm, []).extend(made)
            for pair in pairs(start, grammar, rng):
                for name in (*groups, f"span {pair.context.span}"):
                    found.setdefault(name, []).append(pair)
            if group == "json grammar":
                for clamp, made_filled in fills.items():
                    made_filled += filled(start, clamp=clamp)
        report(f"{number}/{len(prompts)} {prompt.id}")
    return {
        "prompts": len(prompts),
        "tokens": tokens,
        "acceptance_length": {
            name: {arm: _mean(values) for arm, values in arms.items()}
            for name, arms in sorted(lengths.items())
        },
        "pairs": {name: _better(rounds) for name, rounds in sorted(found.items())},
        "fill_in": {
            "masked": _mean([f.length for f in fills[False]]),
            "clamped": _mean([f.length for f in fills[True]]),
            "forced_share": _mean([f.forced / f.length for f in fills[True]]),
        },
    }


def _compiles(engine: Engine, prompt: Prompt) -> bool:
    try:
        prompt.constraint(engine)
    except ConstraintError:
        return False
    return True


def _better(rounds: Sequence[Pair]) -> Better:
    who = Counter(
        (pair.lengths["ar"] > pair.lengths["diffusion"])
        - (pair.lengths["ar"] < pair.lengths["diffusion"])
        for pair in rounds
    )
    return {
        "rounds": len(rounds),
        "ar_better": round(who[1] / len(rounds), 3),
        "diffusion_better": round(who[-1] / len(rounds), 3),
        "best_of_both": _mean([max(pair.lengths.values()) for pair in rounds]),
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0
