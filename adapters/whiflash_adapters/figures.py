"""`Stats` as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from whiflash_engine.config import ArmName
from whiflash_engine.events import ArmStats, Stats


def as_data(stats: Stats) -> dict[str, object]:
    """The figures of one answer as plain data, for `response_metadata["whiflash"]`."""
    return {
        "rounds": stats.rounds,
        "tokens": stats.tokens,
        "acceptance_length": stats.acceptance_length,
        "tokens_per_second": stats.tokens_per_second,
        "time_to_first_token": stats.time_to_first_token,
        "seconds": stats.seconds,
        "switches": stats.switches,
        "caught_up": stats.caught_up,
        "switch_seconds": stats.switch_seconds,
        "forced_tokens": stats.forced,
        "cached_tokens": stats.cached,
        "phases": asdict(stats.phases),
        "arms": _arms(stats.arms.items()),
        "spans": {span: _arms(arms.items()) for span, arms in stats.spans.items()},
    }


def _arms(arms: Iterable[tuple[ArmName, ArmStats]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "rounds": arm.rounds,
            "tokens": arm.tokens,
            "seconds": arm.seconds,
            "acceptance_length": arm.acceptance_length,
        }
        for name, arm in arms
    }
