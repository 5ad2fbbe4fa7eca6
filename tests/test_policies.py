"""Policies: what they expect of an arm, and what they make of rounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from whiflash_engine.config import ArmName, Span
from whiflash_engine.events import Round, Seconds
from whiflash_engine.router.policies import (
    EntropyPolicy,
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


def test_static_offers_its_arm_or_plain() -> None:
    policy = StaticPolicy("ar")
    assert tuple(policy.candidates(ARMS)) == ("ar",)
    assert tuple(policy.candidates(("plain",))) == ("plain",)


def test_random_is_even_and_known_by_position() -> None:
    policy = RandomPolicy(3)

    def winner(position: int) -> ArmName:
        return max(ARMS, key=lambda arm: policy.expect(arm, _context(position=position)))

    counts = Counter(winner(p) for p in range(3000))
    assert sum((counts[a] - 1000) ** 2 / 1000 for a in ARMS) < 13.8  # 2 df, p = 0.001
    assert [winner(p) for p in range(50)] == [winner(p) for p in range(50)]
    switches = sum(winner(p) != winner(p + 1) for p in range(1000))
    assert switches > 550


def test_the_threshold_prefers_ar_above_tau_only() -> None:
    policy = ThresholdPolicy(0.5)
    for entropy, ar_wins in ((0.6, True), (0.4, False)):
        context = _context(entropy)
        assert (policy.expect("ar", context) > policy.expect("diffusion", context)) is ar_wins
    # the paper: AR if H > tau, so that equality goes to diffusion
    assert policy.expect("ar", _context(0.5)) == policy.expect("diffusion", _context(0.5))
    assert policy.candidates(ARMS)[0] == "diffusion"
    assert policy.candidates(("ar", "plain")) == ("ar",)
    assert policy.candidates(("plain",)) == ("plain",)


def test_estimates_start_at_the_prior_and_stay_within_the_width() -> None:
    policy = EntropyPolicy()
    assert policy.expect("plain", _context()) == 1.0
    assert policy.expect("ar", _context()) == policy.expect("diffusion", _context()) == 2.0
    assert policy.expect("forced", _context(width=5)) == 5.0
    for _ in range(300):
        policy.learn(_round("ar", 7))
    assert policy.expect("ar", _context()) == pytest.approx(8.0, abs=0.01)
    assert policy.expect("ar", _context(width=3)) == 3.0
    for _ in range(300):
        policy.learn(_round("ar", 0))
    assert policy.expect("ar", _context()) == pytest.approx(1.0, abs=0.4)


def test_one_round_by_hand() -> None:
    """Shrinkage 4 at each of three levels, prior 2, one round of 6 tokens."""
    policy = EntropyPolicy()
    policy.learn(_round("ar", 5))
    arm = (6 + 4 * 2.0) / 5
    bucket = (6 + 4 * arm) / 5
    cell = (6 + 4 * bucket) / 5
    assert policy.expect("ar", _context()) == pytest.approx(cell)
    assert policy.expect("ar", _context(span="json")) == pytest.approx(bucket)
    assert policy.expect("ar", _context(entropy=2.9)) == pytest.approx(arm)
    assert policy.expect("diffusion", _context()) == 2.0


def test_cells_tell_spans_and_entropies_apart() -> None:
    policy = EntropyPolicy()
    for _ in range(100):
        policy.learn(_round("diffusion", 7, entropy=0.01, span="json"))
        policy.learn(_round("diffusion", 0, entropy=2.0, span="text"))
    low, high = _context(0.01, "json"), _context(2.0, "text")
    assert policy.expect("diffusion", low) > 7 and policy.expect("diffusion", high) < 1.6
    # Never seen: said by its elders, somewhere between.
    between = policy.expect("diffusion", _context(0.5, "reasoning"))
    assert 3.5 < between < 5.5


def test_a_draft_that_was_cut_short_says_at_least() -> None:
    policy = EntropyPolicy()
    for _ in range(100):
        policy.learn(_round("ar", 5))
    before = policy.expect("ar", _context())
    for _ in range(20):  # all accepted, but only two were offered
        policy.learn(_round("ar", 2, drafts=2))
    assert policy.expect("ar", _context()) == pytest.approx(before, abs=0.01)
    for _ in range(20):  # rejected: known exactly, however many were offered
        policy.learn(_round("ar", 1, drafts=2))
    assert policy.expect("ar", _context()) < before - 0.5


def test_forced_tokens_are_certain_and_only_what_follows_them_is_learned() -> None:
    policy = EntropyPolicy()
    for _ in range(200):
        policy.learn(replace(_round("forced", 4, drafts=4), forced=4))
        policy.learn(replace(_round("ar", 5, drafts=7), forced=3))
    assert policy.expect("forced", _context(width=9)) == 9.0
    assert policy.expect("ar", _context()) == pytest.approx(3.0, abs=0.05)
    known = replace(_context(), forced=(1, 2, 3))
    assert policy.expect("ar", known) == pytest.approx(6.0, abs=0.05)
    assert policy.expect("ar", replace(known, width={"ar": 5})) == 5.0


def test_plain_and_empty_rounds_teach_nothing() -> None:
    policy = EntropyPolicy()
    policy.learn(_round("plain", 0, drafts=0))
    policy.learn(_round("ar", 0, drafts=0))
    assert policy.expect("ar", _context()) == 2.0
