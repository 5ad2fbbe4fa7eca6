"""Calibration, on a target that makes its own time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tests.toys import ToyCache, ToyDrafter, ToyTarget
from whiflash_engine.cache import KVCache
from whiflash_engine.calibrate import calibrate
from whiflash_engine.drafters.base import DraftState
from whiflash_engine.features import FeatureLog
from whiflash_engine.router.costs import CostModel
from whiflash_engine.sequence import MAX_COPY
from whiflash_engine.target.base import TargetCache, TargetOutput


class SteppedTarget(ToyTarget):
    """Every six tokens of a pass begin a block, which takes `step` seconds."""

    def __init__(self, step: float) -> None:
        super().__init__(8)
        self.step, self.now, self.stalls = step, 0.0, (0, 0)

    def forward(self, tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        width, stalled = self.stalls
        stalled *= len(tokens) == width
        self.now += self.step * (math.ceil(len(tokens) / 6) + stalled)
        return super().forward(tokens, cache, rows=rows)


def passes(
    step: float, monkeypatch: pytest.MonkeyPatch, stalls: tuple[int, int] = (0, 0)
) -> list[float]:
    """Expected seconds of a plain round, by width from 1 on, in steps. stalls: a width, whose
    passes take so many steps more."""
    target, costs = SteppedTarget(step), CostModel()
    target.stalls = stalls
    monkeypatch.setattr("whiflash_engine.calibrate.perf_counter", lambda: target.now)
    calibrate(target, {"ar": ToyDrafter(target, seed=0, draft=3)}, costs)
    return [s / step for s in costs.expected("plain", 1, MAX_COPY + 1)]


def test_the_steps_of_a_pass_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(0.004, monkeypatch) == pytest.approx([1] * 6 + [2] * 6 + [3])


def test_a_slow_target_is_measured_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = passes(2.0, monkeypatch)
    assert seconds[0] == seconds[3] == 1 and seconds[12] == 3, "plain and the whole drafts"
    assert seconds[6] == pytest.approx(1 + 2 * 3 / 9), "what lies between is a straight line"


def test_no_pass_costs_more_than_one_over_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(0.004, monkeypatch, (3, 5)) == pytest.approx([1] * 6 + [2] * 6 + [3])


class FarTarget(ToyTarget):
    """A pass takes 10 ms, and for each position that it looks back to 2 us, and 1 us a row. It
    remembers nothing but how far it is."""

    def __init__(self) -> None:
        super().__init__(8, max_positions=4096)
        self.now = 0.0

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(1, 1, 2, capacity, self.dtype, self.device)

    def forward(self, tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        assert isinstance(cache, KVCache)
        self.now += 0.010 + cache.length * (2e-6 + 1e-6 * len(tokens))
        cache.reserve(len(tokens))
        cache.advance(len(tokens))
        return super().forward(tokens, ToyCache(), rows=rows)


class SlowDrafter(ToyDrafter):
    """Takes in a position in so many seconds, behind 2 ms; what it is asked first takes a second
    more."""

    def __init__(self, target: FarTarget, a_position: float) -> None:
        super().__init__(target, seed=0, draft=3)
        self._target, self._first, self._each = target, 1.0, a_position
        self.most = 0

    def ingest(self, state: DraftState, log: FeatureLog, tokens: Sequence[int]) -> None:
        count = log.length - state.watermark
        self._target.now += self._first + 0.002 + self._each * count
        self._first, self.most = 0.0, max(self.most, count)
        super().ingest(state, log, tokens)


def test_what_looking_far_back_takes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target, costs = FarTarget(), CostModel()
    monkeypatch.setattr("whiflash_engine.calibrate.perf_counter", lambda: target.now)
    calibrate(target, {}, costs)
    for context in (16, 80, 3024):  # the middle of those that costs tell alike
        expected = [0.010 + context * (2e-6 + 1e-6 * width) for width in (1, 2, 3)]
        assert costs.expected("plain", 1, 3, context) == pytest.approx(expected)


def test_what_catching_up_takes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target, costs = FarTarget(), CostModel()
    monkeypatch.setattr("whiflash_engine.calibrate.perf_counter", lambda: target.now)
    quick, slow = SlowDrafter(target, 50e-6), SlowDrafter(target, 5e-3)
    calibrate(target, {"ar": quick, "diffusion": slow}, costs)
    for backlog in (64, 300, 512, 4000):
        assert costs.catch_up("ar", backlog, 4) == pytest.approx(0.002 + 50e-6 * backlog)
        assert costs.catch_up("diffusion", backlog, 4) == pytest.approx(5e-3 * backlog, rel=0.01)
    assert costs.catch_up("ar", 5, 4) < 0.001
    assert slow.most == 64 < quick.most, "it would take seconds"
