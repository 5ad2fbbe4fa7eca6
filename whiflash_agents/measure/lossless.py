"""The proof of losslessness: greedy, every arm against plain decoding.

A difference counts as none only where the two tokens' logits, computed once more in one
pass over the common prefix, lie within `TIE` of each other: there the last bits of a sum
decide, and plain decoding at another width would decide differently as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from whiflash_agents.measure.prompts import Prompt, balanced
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import RouterConfig
from whiflash_engine.devices import device_name
from whiflash_engine.errors import ConstraintError
from whiflash_engine.events import tokens_of

if TYPE_CHECKING:
    from whiflash_engine.engine import Engine

TIE = 1e-4
ARMS: Mapping[str, RouterConfig] = {
    "ar": RouterConfig("ar"),
    "diffusion": RouterConfig("diffusion"),
    "retrieval": RouterConfig("retrieval"),
    "ar, whole": RouterConfig("ar", whole_drafts=True),
    "random": RouterConfig("random", hindsight=1.0),
    "auto": RouterConfig(),
    "entropy+spans": RouterConfig("entropy"),
}


@dataclass(slots=True)
class Tally:
    """Of one arm, with or without grammar."""

    prompts: int = 0
    tokens: int = 0
    rounds: int = 0
    ties: int = 0
    differences: int = 0


def with_grammar(
    engine: Engine, prompts: Iterable[Prompt], per_kind: int, report: Callable[[str], None]
) -> tuple[list[Prompt], list[str]]:
    """(`per_kind` prompts of each kind whose grammar compiles, what was passed over and why).

    Each arm is then proved on as many prompts with grammar as without.
    """
    refused: list[str] = []

    def compiles(prompt: Prompt) -> bool:
        try:
            prompt.constraint(engine)
        except ConstraintError as error:
            refused.append(f"{prompt.id}: {error}")
            return False
        return True

    chosen = balanced(prompts, per_kind, compiles)
    if refused:
        report(f"{len(refused)} prompts passed over, their schemas cannot be compiled")
    return chosen, refused


def prove(
    engine: Engine, prompts: Sequence[Prompt], tokens: int, report: Callable[[str], None]
) -> dict[str, object]:
    """Generate `tokens` tokens for every prompt, arm and grammar switch; compare.

    All prompts' grammars must compile.
    """
    tallies = {f"{arm}{g}": Tally() for g in ("", " grammar") for arm in ARMS}
    different: list[str] = []
    for number, prompt in enumerate(prompts, 1):
        case = PromptStart(engine, prompt, tokens)
        for grammar in (False, True):
            plain = tokens_of(case.run(RouterConfig("plain"), grammar))
            for arm, router in ARMS.items():
                rounds = case.run(router, grammar)
                routed = tokens_of(rounds)
                tally = tallies[f"{arm}{' grammar' if grammar else ''}"]
                tally.prompts += 1
                tally.tokens += len(routed)
                tally.rounds += len(rounds)
                if routed != plain:
                    gap = _gap(case, plain, routed, grammar)
                    tally.ties += gap <= TIE
                    tally.differences += gap > TIE
                    different.append(f"{prompt.id} {arm} grammar={grammar} gap={gap:.2e}")
        report(f"{number}/{len(prompts)} {prompt.id}: {len(different)} to explain so far")
    return {
        "differences": sum(t.differences for t in tallies.values()),
        "ties": sum(t.ties for t in tallies.values()),
        "tie_threshold": TIE,
        "prompts": len(prompts),
        "tokens": tokens,
        "dtype": engine.target.precision,
        "device": device_name(engine.target.device),
        "arms": {name: asdict(tally) for name, tally in tallies.items()},
        "explained": different,
    }


def _gap(start: PromptStart, plain: Sequence[int], routed: Sequence[int], grammar: bool) -> float:
    """How far apart the target holds the two tokens where the outputs part."""
    pairs = enumerate(zip(plain, routed, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), None)
    if at is None:
        return float("inf")  # one is the beginning of the other: no tie explains that
    before, target = [*start.ids, *plain[:at]], start.engine.target
    logits = target.forward(before, target.new_cache(len(before)), rows=1).logits[0]
    if grammar:
        constraint = start.prompt.constraint(start.engine)
        constraint.close_by(start.sequence.end - len(start.ids))  # near the end masks are narrower
        constraint.commit(plain[:at])
        mask = constraint.masks(())[1][0].to(logits.device)
        logits = logits.masked_fill(~mask, float("-inf"))
    best = logits.max()
    return float(max(best - logits[plain[at]], best - logits[routed[at]]))
