"""One method's speed beside the others', on the same prompts.

Prompts differ more than methods do: what a method makes of another's speed is told more sharply by
their ratio, with the same prompts drawn anew for both, than by what each makes of plain decoding.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

from whiflash_agents.measure.figures import FEWEST, Times, interval
from whiflash_agents.measure.levels import Levels
from whiflash_agents.measure.prompts import KINDS, Kind

BEST = "best arm per prompt"
"""As if it had been known beforehand. Each arm was timed once: it is the luckiest as well."""


class Ratio(NamedTuple):
    """low, high: 90% of such ratios when the prompts are drawn anew, with replacement."""

    ratio: float
    low: float
    high: float


class Against(TypedDict):
    """Ratios of tokens a second, of "all" prompts and by kind, where there are three of it. whole:
    prompt passes included; decoding: without; levelled: so too, see `Levels`."""

    whole: dict[str, Ratio]
    # not beside those that have no rounds
    decoding: NotRequired[dict[str, Ratio]]
    levelled: NotRequired[dict[str, Ratio]]


def against(
    own: Times, others: Mapping[str, Times], levels: Levels, arms: Sequence[str],
    changed: Container[str] = (),
) -> dict[str, Against]:  # fmt: skip
    """own beside each of the others, and beside `BEST` of these arms, if all are there. changed:
    those whose rounds do not tell all that they do, which are told whole alone."""
    found = {
        name: _against(own, [other], levels, in_rounds=name not in changed and all(other.rounds))
        for name, other in others.items()
    }
    if others.keys() >= set(arms):
        rivals = [others[arm] for arm in arms]
        found[BEST] = _against(own, rivals, levels, in_rounds=all(all(r.rounds) for r in rivals))
    return found


def _against(own: Times, rivals: Sequence[Times], levels: Levels, *, in_rounds: bool) -> Against:
    """Beside the best of the rivals, prompt by prompt, by each clock."""
    found: Against = {"whole": _ratios(own, _best(rivals))}
    if in_rounds:
        decoding = [one.decoding_alone() for one in rivals]
        found["decoding"] = _ratios(own.decoding_alone(), _best(decoding))
        levelled = [one.decoding_alone(levels) for one in rivals]
        found["levelled"] = _ratios(own.decoding_alone(levels), _best(levelled))
    return found


def _best(records: Sequence[Times]) -> Times:
    """Whoever was fastest, prompt by prompt."""
    best = Times()
    for i, kind in enumerate(records[0].kinds):
        one = max(records, key=lambda record: record.tokens[i] / record.seconds[i])
        best.add(kind, one.seconds[i], one.tokens[i], one.rounds[i])
    return best


def _ratios(own: Times, other: Times) -> dict[str, Ratio]:
    kinds = [kind for kind in KINDS if own.kinds.count(kind) >= FEWEST]
    return {kind or "all": _ratio(own, other, kind) for kind in (None, *kinds)}


def _ratio(own: Times, other: Times, kind: Kind | None) -> Ratio:
    return Ratio(own.rate(kind) / other.rate(kind), *interval(own, other, kind))
