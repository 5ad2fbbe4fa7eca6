"""Policies: what they expect of an arm, and what they make of rounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round, Seconds
from whiflash_engine.router.averages import AveragesPolicy
from whiflash_engine.router.policies import (
    Policy,
    RandomPolicy,
    RouteContext,
    StaticPolicy,
    ThresholdPolicy,
)

ARMS: tuple[ArmName, ...] = ("ar", "diffusion", "plain")


def _context(
    entropy: float = 0.5, span: Span = "text", position: int = 7, width: int = 8
) -> RouteContext:
    return RouteContext(
        entropy, span, position, backlog={"ar": 1, "diffusion": 1, "plain": 0},
        width={"ar": width, "diffusion": width, "forced": width, "plain": 1},
    )  # fmt: skip


def _round(
    arm: ArmName, accepted: int, *, drafts: int = 7, entropy: float = 0.5, span: Span = "text"
) -> Round:
    return Round(
        arm,
        9,
        (0,) * (accepted + 1),
        (0,) * drafts,
        accepted,
        drafts + 1,
        span,
        entropy,
        1,
        Seconds(),
    )


def _whole(policy: Policy, arm: ArmName, context: RouteContext) -> float:
    """Expected tokens of the longest draft on offer."""
    return float(policy.expect(arm, context)[-1])


def test_static_offers_its_arm_or_plain() -> None:
    policy = StaticPolicy("ar")
    assert tuple(policy.candidates(ARMS)) == ("ar",)
    assert tuple(policy.candidates(("plain",))) == ("plain",)


def test_random_is_even_and_known_by_position() -> None:
    policy = RandomPolicy(3)

    def winner(position: int) -> ArmName:
        return max(ARMS, key=lambda arm: _whole(policy, arm, _context(position=position)))

    counts = Counter(winner(p) for p in range(3000))
    assert sum((counts[a] - 1000) ** 2 / 1000 for a in ARMS) < 13.8  # 2 df, p = 0.001
    assert [winner(p) for p in range(50)] == [winner(p) for p in range(50)]
    switches = sum(winner(p) != winner(p + 1) for p in range(1000))
    assert switches > 550


def test_the_threshold_prefers_ar_above_tau_only() -> None:
    policy = ThresholdPolicy(0.5)
    for entropy, ar_wins in ((0.6, True), (0.4, False)):
        context = _context(entropy)
        assert (_whole(policy, "ar", context) > _whole(policy, "diffusion", context)) is ar_wins
    # the paper: AR if H > tau, so that equality goes to diffusion
    assert _whole(policy, "ar", _context(0.5)) == _whole(policy, "diffusion", _context(0.5))
    assert policy.candidates(ARMS)[0] == "diffusion"
    assert policy.candidates(("ar", "plain")) == ("ar",)
    assert policy.candidates(("plain",)) == ("plain",)


def test_estimates_start_at_the_prior_and_stay_within_the_width() -> None:
    policy = AveragesPolicy()
    assert _whole(policy, "plain", _context()) == 1.0
    prior = 2 - 2**-7  # 1 + 1/2 + 1/4 + ... : even odds at each of seven tokens
    assert _whole(policy, "ar", _context()) == _whole(policy, "diffusion", _context()) == prior
    assert _whole(policy, "forced", _context(width=5)) == 5.0
    for _ in range(400):
        policy.learn(_round("ar", 7))
    assert _whole(policy, "ar", _context()) == pytest.approx(8.0, abs=0.02)
    assert _whole(policy, "ar", _context(width=3)) == pytest.approx(3.0, abs=0.01)
    for _ in range(400):
        policy.learn(_round("ar", 0))
    assert _whole(policy, "ar", _context()) == pytest.approx(1.0, abs=0.1)


def test_one_round_by_hand() -> None:
    """Shrinkage 4 at each of three levels, prior 1/2, one round: one token passed, one failed."""
    policy = AveragesPolicy()
    policy.learn(_round("ar", 1, drafts=3))
    arm = [(1 + 4 * 0.5) / 5]
    arm.append((0 + 4 * arm[0]) / 5)
    arm.append(arm[1])  # never reached: as the position before
    bucket = [(1 + 4 * arm[0]) / 5, (0 + 4 * arm[1]) / 5, arm[2]]
    cell = [(1 + 4 * bucket[0]) / 5, (0 + 4 * bucket[1]) / 5, bucket[2]]

    def lengths(chances: list[float]) -> list[float]:
        a, b, c = chances
        return [1 + a, 1 + a + a * b, 1 + a + a * b + a * b * c]

    found = policy.expect("ar", _context(width=4))
    assert list(found) == pytest.approx(lengths(cell))
    assert list(policy.expect("ar", _context(width=4, span="json"))) == pytest.approx(
        lengths(bucket)
    )
    assert list(policy.expect("ar", _context(width=4, entropy=2.9))) == pytest.approx(lengths(arm))
    assert list(policy.expect("diffusion", _context(width=3))) == [1.5, 1.75]


def test_cells_tell_spans_and_entropies_apart() -> None:
    policy = AveragesPolicy()
    for _ in range(100):
        policy.learn(_round("diffusion", 7, entropy=0.01, span="json"))
        policy.learn(_round("diffusion", 0, entropy=2.0, span="text"))
    low, high = _context(0.01, "json"), _context(2.0, "text")
    assert _whole(policy, "diffusion", low) > 6.5 and _whole(policy, "diffusion", high) < 1.6
    # Never seen: said by its elders, somewhere between.
    between = _whole(policy, "diffusion", _context(0.5, "reasoning"))
    assert 2.0 < between < 6.0


def test_how_long_drafts_were_says_nothing_about_how_long_they_could_be() -> None:
    policy = AveragesPolicy()
    for _ in range(300):
        policy.learn(_round("ar", 5))
    before = _whole(policy, "ar", _context())
    for _ in range(20):  # all accepted, but only two were drafted
        policy.learn(_round("ar", 2, drafts=2))
    assert _whole(policy, "ar", _context()) == pytest.approx(before, abs=0.15)
    for _ in range(20):  # rejected: known exactly, however many were drafted
        policy.learn(_round("ar", 1, drafts=2))
    assert _whole(policy, "ar", _context()) < before - 0.5


def test_what_has_not_been_tried_for_long_goes_by_the_position_before() -> None:
    policy = AveragesPolicy()
    for _ in range(100):
        policy.learn(_round("ar", 2))  # the third token never passes
    for _ in range(600):
        policy.learn(_round("ar", 2, drafts=2))  # and is not drafted any more
    expected = policy.expect("ar", _context())
    assert expected[2] - expected[1] > 0.85  # by now it may be as good as its neighbours


def test_forced_tokens_are_certain_and_only_what_follows_them_is_learned() -> None:
    policy = AveragesPolicy()
    for _ in range(200):
        policy.learn(replace(_round("forced", 4, drafts=4), forced=4))
        policy.learn(replace(_round("ar", 5, drafts=7), forced=3))
    assert _whole(policy, "forced", _context(width=9)) == 9.0
    # two drafted tokens pass, the third fails
    assert _whole(policy, "ar", _context()) == pytest.approx(3.0, abs=0.1)
    known = _context()._replace(forced=(1, 2, 3))
    assert _whole(policy, "ar", known) == pytest.approx(6.0, abs=0.1)
    assert list(policy.expect("ar", known._replace(width={"ar": 4}))) == [4.0]


def test_plain_and_empty_rounds_teach_nothing() -> None:
    policy = AveragesPolicy()
    policy.learn(_round("plain", 0, drafts=0))
    policy.learn(_round("ar", 0, drafts=0))
    assert _whole(policy, "ar", _context()) == 2 - 2**-7
