"""Costs: averages that stalls cannot carry away, and what a round is expected to cost."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest

from whiflash_engine.config import ArmName
from whiflash_engine.events import Round, Seconds
from whiflash_engine.router.costs import CostModel, Curve, moved


def _round(arm: ArmName, seconds: Seconds, *, drafts: int = 3, backlog: int = 0) -> Round:
    return Round(
        arm, position=9, tokens=(1,), proposed=(0,) * drafts, accepted=0,
        verified=drafts + 1, span="text",
        entropy=0.5, backlog=backlog, seconds=seconds,
    )  # fmt: skip


def _expected(costs: CostModel, arm: ArmName, width: int) -> float:
    return costs.expected(arm, width, width)[0]


def test_one_outlier_moves_an_average_by_a_fifth_at_most() -> None:
    for stall in (0.0, 1e-9, 5.0, 1e9):
        assert 0.008 <= moved(0.010, stall) <= 0.012 + 1e-12


def test_a_stall_now_and_then_hardly_shows() -> None:
    average = 0.010
    values = []
    for i in range(1, 401):
        average = moved(average, 1.0 if i % 50 == 0 else 0.010)
        values.append(average)
    assert sum(values) / len(values) == pytest.approx(0.010, rel=0.05)
    assert values[-2] == pytest.approx(0.010, rel=0.01)


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_a_change_that_lasts_is_believed(factor: float) -> None:
    average = 0.010
    for _ in range(60):
        average = moved(average, 0.010 * factor)
    assert average == pytest.approx(0.010 * factor, rel=0.05)


def _at(curve: Curve, *places: int) -> list[float]:
    found = [curve.at(place) for place in places]
    assert found == [curve.between(place, place)[0] for place in places]
    return [value for value in found if value is not None]


def test_a_curve_is_linear_between_points_and_flat_outside() -> None:
    curve = Curve()
    assert not curve.between(3, 3) and curve.at(3) is None
    curve.seed(8, 4.0)
    assert _at(curve, 1, 99) == [4.0, 4.0]
    curve.seed(4, 2.0)
    assert _at(curve, 1, 4, 5, 7, 8, 9) == [2.0, 2.0, 2.5, 3.5, 4.0, 4.0]
    together = curve.between(3, 9)
    assert together == [2.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.0]
    curve.add(500, 4.0)
    assert _at(curve, 499, 2000) == [4.0, 4.0]


def test_one_far_point_costs_those_that_are_near_nothing() -> None:
    curve = Curve()
    for at in (1, 4, 10**9):
        curve.seed(at, 1.0)
    curve.add(4, 2.0)
    assert list(curve.between(1, 4)) == pytest.approx([1.0, 1 + 0.1 / 3, 1 + 0.2 / 3, 1.1])


def test_before_any_measurement_every_round_costs_the_same() -> None:
    costs = CostModel()
    assert {_expected(costs, arm, w) for arm in ("ar", "plain") for w in (1, 8)} == {1.0}


def test_expected_seconds_add_up() -> None:
    costs = CostModel()
    costs.seed("ar", 2, 0.004)
    costs.seed_verify(1, 0.010)
    costs.seed_verify(5, 0.014)
    assert _expected(costs, "plain", 1) == pytest.approx(0.010)
    assert _expected(costs, "ar", 3) == pytest.approx(0.004 + 0.012)
    # pick, mask and commit weigh on every arm alike
    costs.learn(_round("ar", Seconds(pick=1e-3, draft=4e-3, mask=2e-3, verify=1.4e-2), drafts=4))
    assert _expected(costs, "plain", 1) == pytest.approx(0.013)
    assert _expected(costs, "ar", 5) == pytest.approx(0.003 + 0.004 + 0.014)
    # an arm that has never drafted gets its turn
    assert _expected(costs, "diffusion", 5) == pytest.approx(0.003 + 0.014)


def test_catching_up_costs_by_backlog() -> None:
    costs = CostModel()
    costs.seed_verify(4, 0.010)
    assert costs.catch_up("ar", 1000, 4) == 0.0  # never measured
    for _ in range(300):
        costs.learn(_round("ar", Seconds(catch_up=0.016), backlog=64))  # as 96
        costs.learn(_round("ar", Seconds(catch_up=0.032), backlog=300))  # as 384
    assert costs.catch_up("ar", 64, 4) == pytest.approx(0.016)
    assert costs.catch_up("ar", 240, 4) == pytest.approx(0.024)
    assert costs.catch_up("diffusion", 160, 4) == 0.0
    assert costs.catch_up("ar", 4, 4) == 0.0  # an ordinary ingest
    assert _expected(costs, "ar", 4) == pytest.approx(0.010)


def test_what_was_measured_of_many_backlogs_is_not_held_against_the_longer_ones() -> None:
    """A millisecond a position, whatever the backlog."""
    costs = CostModel()
    for backlog in random.Random(0).choices(range(32, 512), k=9000):
        costs.learn(_round("ar", Seconds(catch_up=backlog * 1e-3), backlog=backlog))
    for backlog in (64, 100, 127, 128, 200, 255, 300):
        assert costs.catch_up("ar", backlog, 4) == pytest.approx(backlog * 1e-3, rel=0.2)


def test_longer_drafts_cost_more() -> None:
    costs = CostModel()
    costs.seed("ar", 1, 0.001)
    costs.seed("ar", 5, 0.005)
    costs.seed_verify(1, 0.010)
    costs.seed_verify(6, 0.015)
    found = costs.expected("ar", 2, 6)
    assert list(found) == pytest.approx([0.012, 0.014, 0.016, 0.018, 0.020])


def test_the_first_measurement_at_a_new_length_cannot_carry_its_cost_away() -> None:
    costs = CostModel()
    costs.seed_verify(1, 0.010)
    costs.seed_verify(8, 0.012)
    stalled = _round("ar", Seconds(draft=0.004, verify=0.3), drafts=2)
    costs.learn(stalled)  # three rows, never measured before
    assert _expected(costs, "ar", 3) == pytest.approx(0.0105 * 1.2 + 0.004, rel=0.05)


def test_what_one_width_says_of_the_machine_holds_for_all() -> None:
    costs = CostModel()
    costs.seed("ar", 3, 0.002)
    costs.seed("diffusion", 3, 0.004)
    for width, seconds in ((1, 0.010), (4, 0.012), (8, 0.020)):
        costs.seed_verify(width, seconds)
    before = costs.expected("plain", 1, 8)
    for _ in range(80):  # twice as slow, all of it; only this width is ever picked
        costs.learn(_round("ar", Seconds(draft=0.004, verify=0.024), drafts=3))
    after = costs.expected("plain", 1, 8)
    assert _expected(costs, "ar", 4) == pytest.approx(0.028, rel=0.02)
    assert after[7] / before[7] == pytest.approx(1.75, abs=0.1)
    assert after[0] / before[0] == pytest.approx(after[7] / before[7], rel=0.01)
    slower = _expected(costs, "diffusion", 4) - after[3]
    assert slower == pytest.approx(0.004 * after[7] / before[7], rel=0.02), "its draft as well"


def test_a_width_that_was_not_calibrated_says_nothing_of_the_others() -> None:
    """A grammar forces forty tokens, again and again: a pass two and a half times as long."""
    costs = CostModel()
    costs.seed_verify(1, 0.010)
    costs.seed_verify(16, 0.040)
    before = costs.expected("plain", 1, 16)
    for _ in range(60):
        costs.learn(_round("plain", Seconds(verify=0.100), drafts=40))
    assert costs.expected("plain", 1, 16) == pytest.approx(before)
    assert _expected(costs, "plain", 41) == pytest.approx(0.100, rel=0.02)


def test_a_pass_costs_more_the_further_it_looks_back() -> None:
    costs = CostModel()
    costs.seed_verify(1, 0.010)
    costs.seed_verify(4, 0.015)
    costs.seed_verify(8, 0.020)
    costs.seed_look(2e-6, 1e-6)
    near, far = costs.expected("plain", 1, 8), costs.expected("plain", 1, 8, context=4800)
    assert far[0] == pytest.approx(near[0] + 0.0144) and far[7] == pytest.approx(near[7] + 0.048)
    for _ in range(50):  # just what was expected: nothing is learned
        costs.learn(replace(_round("ar", Seconds(verify=far[3]), drafts=3), position=4816))
    assert costs.expected("plain", 1, 8, context=4800) == pytest.approx(far)
    assert costs.expected("plain", 1, 8) == pytest.approx(near)


def test_catching_up_is_known_before_it_was_ever_done() -> None:
    costs = CostModel()
    costs.seed_catch_up("ar", 64, 0.004)
    costs.seed_catch_up("ar", 640, 0.040)
    assert costs.catch_up("ar", 320, 4) == pytest.approx(0.020)
    assert costs.catch_up("ar", 3, 4) == 0.0 and costs.catch_up("diffusion", 640, 4) == 0.0


def test_all_phases_are_part_of_a_round() -> None:
    one = Seconds(**{field.name: 2.0**i for i, field in enumerate(fields(Seconds))})
    assert one.total == 2.0 ** len(fields(Seconds)) - 1 and one.total - one.decoding == one.prefill
