"""What a method's times and rounds say, ready for JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import numpy as np

from whiflash_agents.measure.levels import Levels
from whiflash_agents.measure.prompts import KINDS, Kind
from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round, Stats, tokens_of

_RESAMPLED = 2000
FEWEST = 3
"""Prompts of a kind for an interval: drawing one or two anew says nothing."""


@dataclass(slots=True)
class Times:
    """Of one method: seconds and tokens per prompt, and its rounds. Seconds are those of all of it,
    prompt pass included, but for `decoding_alone`."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    rounds: list[list[Round]] = field(default_factory=list)

    def add(self, kind: Kind, seconds: float, tokens: int, rounds: list[Round]) -> None:
        """One prompt more."""
        self.kinds.append(kind)
        self.seconds.append(seconds)
        self.tokens.append(tokens)
        self.rounds.append(rounds)

    def rate(self, kind: Kind | None = None) -> float:
        """Tokens per second."""
        chosen = [i for i, k in enumerate(self.kinds) if kind in (None, k)]
        return sum(self.tokens[i] for i in chosen) / sum(self.seconds[i] for i in chosen)

    def decoding_alone(self, levels: Levels | None = None) -> Times:
        """The same without prompt passes, of who has rounds; with every pass and draft at its
        level, if levels are given."""
        spent = [
            sum(r.seconds.decoding for r in rounds) if levels is None else levels.seconds(rounds)
            for rounds in self.rounds
        ]
        made = [len(tokens_of(rounds)) for rounds in self.rounds]
        return Times(spent, made, self.kinds, self.rounds)

    def lengths(self, arm: ArmName) -> dict[int, int]:
        """How many of the arm's rounds committed how many tokens."""
        found = Counter(len(r.tokens) for rounds in self.rounds for r in rounds if r.arm == arm)
        return dict(sorted(found.items()))

    def stats(self, kind: Kind | None = None) -> Stats:
        chosen = [r for r, k in zip(self.rounds, self.kinds, strict=True) if kind in (None, k)]
        every = [r for rounds in chosen for r in rounds]
        return Stats.of(every, prompt_tokens=0, seconds=0.0, time_to_first_token=0.0)


class Method(TypedDict):
    """Figures of one way to decode. Ratios are of tokens per second, prompt pass included.

    to_plain_interval: 90% of the ratios when the prompts are drawn anew, with replacement; by
    kind only where there are three of the kind. decoding_to_plain: without the prompt passes;
    levelled_to_plain: so too, see `Levels`.
    switch_share_of_time: for catching up; router_share_of_time: for picking and learning;
    offer_share_of_time: for finding forced tokens and copies. Of all time, prompts included, but
    for router_share_of_decoding.
    rounds_by_length: how many rounds committed how many tokens, by arm; rounds_by_span: how many
    rounds each arm drafted, by span.
    """

    tokens_per_second: float
    to_plain: float
    to_plain_interval: tuple[float, float]
    to_plain_by_kind: dict[Kind, float]
    to_plain_interval_by_kind: dict[Kind, tuple[float, float]]
    # transformers has no rounds, and none of these
    decoding_to_plain: NotRequired[float]
    decoding_to_plain_by_kind: NotRequired[dict[Kind, float]]
    levelled_to_plain: NotRequired[float]
    levelled_to_plain_by_kind: NotRequired[dict[Kind, float]]
    acceptance_length: NotRequired[float]
    acceptance_length_by_kind: NotRequired[dict[Kind, float]]
    acceptance_length_by_arm: NotRequired[dict[ArmName, float]]
    share_of_rounds: NotRequired[dict[ArmName, float]]
    rounds_by_length: NotRequired[dict[ArmName, dict[int, int]]]
    rounds_by_span: NotRequired[dict[Span, dict[ArmName, int]]]
    switch_share_of_time: NotRequired[float]
    router_share_of_time: NotRequired[float]
    offer_share_of_time: NotRequired[float]
    router_share_of_decoding: NotRequired[float]


def interval(record: Times, plain: Times, kind: Kind | None = None) -> tuple[float, float]:
    """Bootstrap over prompts, seeded."""
    rng = np.random.default_rng(0)
    chosen = np.array([i for i, k in enumerate(plain.kinds) if kind in (None, k)])
    drawn = chosen[rng.integers(len(chosen), size=(_RESAMPLED, len(chosen)))]
    ours, theirs = (
        np.array(one.tokens)[drawn].sum(axis=1) / np.array(one.seconds)[drawn].sum(axis=1)
        for one in (record, plain)
    )
    low, high = np.quantile(ours / theirs, (0.05, 0.95))
    return float(low), float(high)


def figures(record: Times, plain: Times, levels: Levels | None) -> Method:
    """One method's figures. levels: None where its rounds do not tell all that it does."""
    kinds = [kind for kind in KINDS if kind in record.kinds]
    method: Method = {
        "tokens_per_second": record.rate(),
        "to_plain": record.rate() / plain.rate(),
        "to_plain_interval": interval(record, plain),
        "to_plain_by_kind": {kind: record.rate(kind) / plain.rate(kind) for kind in kinds},
        "to_plain_interval_by_kind": {
            kind: interval(record, plain, kind)
            for kind in kinds
            if plain.kinds.count(kind) >= FEWEST
        },
    }
    stats = record.stats()
    if not stats.rounds:
        return method
    if levels is not None:
        levelled, base = record.decoding_alone(levels), plain.decoding_alone(levels)
        method["levelled_to_plain"] = levelled.rate() / base.rate()
        method["levelled_to_plain_by_kind"] = {k: levelled.rate(k) / base.rate(k) for k in kinds}
        decoding, base = record.decoding_alone(), plain.decoding_alone()
        method["decoding_to_plain"] = decoding.rate() / base.rate()
        method["decoding_to_plain_by_kind"] = {k: decoding.rate(k) / base.rate(k) for k in kinds}
    return {
        **method,
        "acceptance_length": stats.acceptance_length,
        "acceptance_length_by_kind": {k: record.stats(k).acceptance_length for k in kinds},
        "acceptance_length_by_arm": {arm: s.acceptance_length for arm, s in stats.arms.items()},
        "share_of_rounds": {arm: s.rounds / stats.rounds for arm, s in stats.arms.items()},
        "rounds_by_length": {arm: record.lengths(arm) for arm in stats.arms},
        "rounds_by_span": {
            span: {arm: s.rounds for arm, s in arms.items()} for span, arms in stats.spans.items()
        },
        "switch_share_of_time": stats.switch_seconds / stats.phases.total,
        "router_share_of_time": stats.phases.pick / stats.phases.total,
        "offer_share_of_time": stats.phases.offer / stats.phases.total,
        "router_share_of_decoding": stats.phases.pick / stats.phases.decoding,
    }
