"""Drafts copied from the text: found where they are, never where they were."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toys import ToyConstraint, ToyTarget, new_sequence, run, toy_drafters
from whiflash_engine.config import RouterConfig, SamplingConfig
from whiflash_engine.events import tokens_of
from whiflash_engine.lookup import LEAST, Lookup
from whiflash_engine.router.averages import AveragesPolicy
from whiflash_engine.router.policies import RouteContext

TEXT = st.lists(st.integers(0, 3), max_size=40)


def naive(tokens: Sequence[int], limit: int) -> tuple[tuple[int, ...], int]:
    """The longest match over all earlier places, the latest of equals."""
    best, longest = 0, 0
    for place in range(LEAST, len(tokens)):
        matched = 0
        while matched < min(24, place) and tokens[place - 1 - matched] == tokens[-1 - matched]:
            matched += 1
        if matched >= max(longest, LEAST):
            best, longest = place, matched
    draft: list[int] = []
    for i in range(best, best + limit if longest else best):
        draft.append(tokens[i] if i < len(tokens) else draft[i - len(tokens)])
    return tuple(draft), longest


@given(TEXT, st.integers(1, 12))
def test_the_longest_and_latest_match_is_copied(tokens: list[int], limit: int) -> None:
    draft, matched = Lookup().draft(tokens, limit)
    wanted, longest = naive(tokens, limit)
    if len(tokens) <= 16:  # else only the latest places are looked at
        assert (draft, matched) == (wanted, longest)
    assert len(draft) == (limit if matched else 0) and matched <= longest


@given(st.lists(st.tuples(TEXT, st.integers(0, 40)), min_size=1, max_size=6), TEXT)
def test_a_used_lookup_says_what_a_fresh_one_says(
    changes: list[tuple[list[int], int]], ahead: list[int]
) -> None:
    lookup, tokens = Lookup(), list[int]()
    for more, back in changes:
        del tokens[max(len(tokens) - back, 0) :]
        lookup.crop(len(tokens))
        tokens += more
        for end in ((), ahead):
            assert lookup.draft(tokens, 4, end) == Lookup().draft(tokens, 4, end)
    lookup.crop(0)
    assert not lookup._last  # nothing is left behind


def test_a_loop_goes_round() -> None:
    assert Lookup().draft([1, 2, 3, 1, 2, 3, 1, 2, 3], 7) == ((1, 2, 3, 1, 2, 3, 1), 6)


def test_nothing_to_copy() -> None:
    for tokens in ([], [1], [1, 2, 3], [1, 2, 3, 4, 5, 6]):
        assert Lookup().draft(tokens, 5) == ((), 0)
    assert Lookup().draft([1, 2, 3, 4, 1, 2, 3], 0) == ((), 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_that_repeats_itself_is_copied_without_a_drafter(temperature: float) -> None:
    target = ToyTarget(4, seed=2)
    sampling = SamplingConfig(max_tokens=120, temperature=temperature, seed=3)
    rounds = run(target, {}, [1, 2, 3], sampling=sampling, router=RouterConfig("retrieval"))
    copied = [r for r in rounds if r.arm == "retrieval"]
    assert copied and sum(r.accepted for r in copied) > 5
    assert all(r.seconds.draft == 0 and r.matched >= LEAST for r in copied)
    if temperature == 0:
        plain = run(target, {}, [1, 2, 3], sampling=sampling, router=RouterConfig("plain"))
        assert tokens_of(rounds) == tokens_of(plain)


def test_what_is_forced_comes_before_what_is_copied() -> None:
    target = ToyTarget(9, seed=3)
    rounds = run(
        target, toy_drafters(target), [1, 2, 3], sampling=SamplingConfig(max_tokens=300),
        router=RouterConfig("retrieval"), constraint=ToyConstraint(9, forcing=True),
    )  # fmt: skip
    both = [r for r in rounds if r.arm == "retrieval" and r.forced]
    assert both and all(r.accepted >= r.forced for r in both)


def test_it_can_be_switched_off() -> None:
    target = ToyTarget(4, seed=2)
    sampling = SamplingConfig(max_tokens=80)
    off = run(
        target,
        toy_drafters(target),
        [1, 2],
        sampling=sampling,
        router=RouterConfig(retrieval=False),
    )
    assert all(r.arm != "retrieval" and r.matched == 0 for r in off)
    on = run(target, toy_drafters(target), [1, 2], sampling=sampling, router=RouterConfig())
    assert tokens_of(on) == tokens_of(off)


def test_longer_matches_are_trusted_more_once_they_were_right() -> None:
    policy, rng = AveragesPolicy(), random.Random(0)
    target = ToyTarget(4, seed=2)
    rounds = run(
        target,
        {},
        [1, 2, 3],
        sampling=SamplingConfig(max_tokens=200),
        router=RouterConfig("retrieval"),
    )
    for r in rounds:
        policy.learn(r)

    def expected(matched: int) -> float:
        context = RouteContext(
            entropy=rng.random(), span="text", position=9, backlog={}, width={"retrieval": 13},
            copied=(1,) * 12, matched=matched,
        )  # fmt: skip
        return float(policy.expect("retrieval", context)[-1])

    assert expected(24) > expected(3)


def test_a_sequence_that_goes_back_forgets_what_it_will_not_say() -> None:
    target = ToyTarget(9, seed=1)
    sequence = new_sequence(target, {}, [1, 2, 3, 4, 1, 2, 3], max_tokens=9)
    assert sequence.lookup.draft(sequence.tokens, 2) == ((4, 1), 3)
    sequence.rewind(4)
    sequence.tokens += [5, 1, 2, 3]
    assert sequence.lookup.draft(sequence.tokens, 2) == ((4, 5), 3)
