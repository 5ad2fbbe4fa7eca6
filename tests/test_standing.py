"""Clear decisions stand for some rounds; what rounds teach is learned several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf, nan
from typing import Any, cast

import pytest
import torch

from tests.test_neural import HIDDEN, context, net, rounds
from tests.test_router import ARMS, DRAFT, VERIFY, WIDTH, Table, _context, _costs, _late, _round
from tests.toys import ToyTarget, run, toy_drafters
from whiflash_engine.config import ArmName, RouterConfig, SamplingConfig
from whiflash_engine.events import Round, Seconds, tokens_of
from whiflash_engine.router.decision import Decision
from whiflash_engine.router.neural import NeuralPolicy
from whiflash_engine.router.policies import Expected, RouteContext
from whiflash_engine.router.router import Router
from whiflash_engine.router.standing import Standing

CLEAR: Mapping[ArmName, float] = {"plain": 0.0, "ar": 1.0, "diffusion": 0.82}
COPY: dict[ArmName, int] = {**WIDTH, "retrieval": 6}


def kept(scores: Mapping[ArmName, float] = CLEAR, **at: Any) -> Standing:
    standing = Standing()
    standing.keep(scores, _context()._replace(**at))
    return standing


def stands(standing: Standing, rounds: int = 40) -> int:
    """For how many rounds of two tokens each, the context staying as it is."""
    for done in range(rounds):
        if standing.recall(_context(position=9 + 2 * done)) is None:
            return done
    return rounds


@pytest.mark.parametrize(
    ("ahead", "rounds"), [(0.0, 0), (0.01, 0), (0.03, 1), (0.09, 4), (0.17, 8), (5.0, 10)]
)
def test_it_stands_for_as_long_as_the_margin_is_wide(ahead: float, rounds: int) -> None:
    assert stands(kept({"plain": -1.0, "ar": 0.5 + ahead, "diffusion": 0.5})) == rounds


@pytest.mark.parametrize(("balance", "rounds"), [(1.0, 8), (0.5, 4), (0.1, 0), (0.0, 0)])
def test_it_stands_the_shorter_the_less_time_counts(balance: float, rounds: int) -> None:
    standing = Standing(balance)
    standing.keep({"plain": -1.0, "ar": 0.67, "diffusion": 0.5}, _context())
    assert stands(standing) == rounds


def test_it_says_what_was_said() -> None:
    standing = Standing()
    assert standing.keep(CLEAR, _context()) == "ar"
    standing.floor = 0.25
    assert standing.recall(_context(position=10)) == Decision("ar", WIDTH["ar"] - 1, CLEAR, 0.25)
    narrow = _context(position=12)._replace(width={**WIDTH, "ar": 2})  # hardly any room is left
    assert standing.recall(narrow) == Decision("ar", 1, CLEAR, 0.25)


@pytest.mark.parametrize(
    "change",
    [
        {"width": COPY}, {"width": {**WIDTH, "forced": 3}}, {"span": "json"}, {"position": 7},
        {"position": 3}, {"position": 24}, {"position": 40},
        {"backlog": {"ar": 17}}, {"backlog": {"plain": 0}},
    ],
)  # fmt: skip
def test_it_is_asked_again_where_something_is_new(change: Mapping[str, Any]) -> None:
    standing = kept()
    assert standing.recall(_context(position=9)._replace(**change)) is None
    assert standing.recall(_context(position=23)) is not None  # and goes on where it was


def test_what_may_be_gone_and_what_has_to_catch_up_does_not_stand() -> None:
    copied = {**CLEAR, "retrieval": 2.0}
    found = kept(copied, width=COPY).recall(_context(position=14))
    assert found is not None and found.arm == "ar"  # once there is nothing to copy any more
    assert stands(kept({"plain": 1.0, "ar": 0.0})) == 0
    assert stands(kept({"ar": 1.0})) == stands(kept({"plain": 0.0, "retrieval": 9.0})) == 0
    assert stands(kept(backlog={"ar": 40, "diffusion": 0, "plain": 0})) == 0


class Counted(Table):
    """A table that counts how often it was asked for AR."""

    asked = 0

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        self.asked += arm == "ar"
        return super().expect(arm, context)


@pytest.mark.parametrize("lets_stand", [True, False])
def test_a_router_asks_only_where_it_is_not_clear(lets_stand: bool) -> None:
    policy = Counted(ar=4.0, diffusion=2.0, plain=1.0)
    router = Router(policy, balance=1.0, lets_stand=lets_stand, costs=_costs())
    picked = []
    for done in range(44):
        decision = router.pick(_context(position=9 + 3 * done))
        router.learn(_round(decision, 3))
        picked.append(decision)
    assert {one.arm for one in picked} == {"ar"} and all(one.scores for one in picked)
    assert policy.asked == (4 if lets_stand else 44)  # one in eleven


def test_probes_come_about_as_often_where_decisions_stand() -> None:
    def probes(lets_stand: bool) -> list[int]:
        table = Table(ar=4.0, diffusion=2.0, plain=1.0)
        router = Router(
            table, balance=1.0, probed=["diffusion"], lets_stand=lets_stand, costs=_costs()
        )
        found = []
        for done in range(600):
            decision = router.pick(_context(position=9 + 3 * done))
            router.learn(_round(decision, 3))
            if decision.arm == "diffusion":
                found.append(done)
        return found

    every, some = probes(False), probes(True)
    assert 5 < len(some) <= len(every) <= len(some) + 2
    assert all(b - a > 3 for a, b in pairwise(some)), "never twice at once"


class Told(Table):
    """Remembers what it has learned."""

    def __init__(self, **expected: float | Sequence[float]) -> None:
        super().__init__(**expected)
        self.learned: list[Round] = []

    def learn(self, round: Round) -> None:
        self.learned.append(round)


def test_every_round_is_learned_once_and_in_order() -> None:
    policy = Told(ar=3.0, diffusion=2.0, plain=1.0)
    router = Router(policy, balance=1.0, costs=_costs())
    told: list[Round] = []
    for done in range(21):
        told.append(_round(router.pick(_context(position=9 + done)), 1 + done % 3))
        router.learn(told[-1])
        assert len(told) - 8 < len(policy.learned) <= len(told)
    assert router.policy is policy and policy.learned == told  # whoever looks sees all of it
    router.digest()
    assert policy.learned == told


def test_what_breaks_off_is_not_learned_twice() -> None:
    policy = Told(ar=3.0, diffusion=2.0, plain=1.0)
    router = Router(policy, balance=1.0, costs=_costs())
    bad = replace(_round(Decision("ar", 4), 3), seconds=cast(Seconds, None))
    for one in (_round(Decision("ar", 4), 2), bad):
        router.learn(one)
    with pytest.raises(AttributeError):
        router.digest()
    router.digest()
    assert len(policy.learned) == 1


def test_scores_that_are_no_numbers_break_nothing() -> None:
    for odd in (nan, inf):
        router = Router(
            Table(ar=odd, diffusion=2.0, plain=1.0), balance=1.0, lets_stand=True, costs=_costs()
        )
        for done in range(20):
            router.learn(_round(router.pick(_context(position=9 + done)), 1))
        router.digest()


def test_an_arm_that_came_back_by_itself_is_not_tried_right_after() -> None:
    table = Table(ar=4.0, diffusion=2.0, plain=1.0)
    costs = _costs()
    costs.seed_catch_up("diffusion", 64, 1.0)  # so dear that it is never tried
    router = Router(table, balance=1.0, probed=["diffusion"], costs=costs)
    late: Mapping[ArmName, int] = {"ar": 1, "diffusion": 64, "plain": 0}
    for _ in range(40):
        router.learn(_round(router.pick(_context()._replace(backlog=late)), 3))
    ready, picked = _context(), []
    for worth in (9.0, 1.5, 1.5):  # it is the best once
        table.expected["diffusion"] = worth
        picked.append(router.pick(ready))
        router.learn(_round(picked[-1], 3))
    assert [one.arm for one in picked] == ["diffusion", "ar", "ar"]


def test_two_texts_in_one_place_are_told_apart() -> None:
    """Of rounds that are learned later, what the network said of the one is not the other's."""
    found = []
    for later in (False, True):
        policy = NeuralPolicy(net())
        places = [
            context(x * torch.ones(HIDDEN))._replace(entropy=h) for x, h in ((1, 0.5), (-1, 0.7))
        ]
        done = [replace(rounds("ar", 2, 3), entropy=place.entropy) for place in places]
        for place, one in zip(places, done, strict=True):
            policy.expect("ar", place)
            if not later:
                policy.learn(one)
        for one in done if later else []:
            policy.learn(one)
        found.append(policy.shift["ar"])
    assert found[0] == pytest.approx(found[1]) != 0.0


def test_what_is_learned_late_is_learned_all_the_same() -> None:
    one, other = (
        Router(Table(ar=3.0, diffusion=2.5, plain=1.0), balance=1.0, costs=_late())
        for _ in range(2)
    )
    for done in range(24):
        for router in (one, other):
            decision = Decision("ar", 4) if done % 3 else Decision("diffusion", 7)
            spent = Seconds(draft=DRAFT[decision.arm], verify=VERIFY * (1 + done / 10))
            router.learn(_round(decision, 3, seconds=spent))
        one.costs.expected("ar", 1, 8)  # what is remembered of that is forgotten with the next
    for arm in ARMS:
        assert one.costs.expected(arm, 1, 8) == other.costs.expected(arm, 1, 8)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_the_same_and_the_policy_rests(temperature: float) -> None:
    target = ToyTarget(9, seed=3)
    sampling = SamplingConfig(max_tokens=300, temperature=temperature, seed=5)
    found = {}
    for every in (True, False):
        router = RouterConfig(every_round=every, retrieval=False)
        found[every] = run(
            target, toy_drafters(target), [1, 2, 3], sampling=sampling, router=router
        )
    again = [sum(a.scores is b.scores for a, b in pairwise(rounds)) for rounds in found.values()]
    assert again[0] == 0 < again[1]
    if temperature == 0:
        plain = run(target, {}, [1, 2, 3], sampling=sampling, router=RouterConfig("plain"))
        assert all(tokens_of(made) == tokens_of(plain) for made in found.values())


def test_whoever_drafts_pays_for_the_readiest() -> None:
    router = Router(Table(ar=3.0, diffusion=3.0, plain=1.0), balance=1.0, costs=_late())

    def score(arm: ArmName, ar: int, diffusion: int) -> float:
        backlog: Mapping[ArmName, int] = {"ar": ar, "diffusion": diffusion, "plain": 0}
        return router.pick(_context()._replace(backlog=backlog, generated=20)).scores[arm]

    for arm in ("ar", "diffusion"):
        assert score(arm, 64, 64) == pytest.approx(score(arm, 1, 1))  # both have to
    assert score("diffusion", 1, 64) < score("diffusion", 32, 64) < score("diffusion", 64, 64)
    assert score("ar", 1, 64) == score("ar", 1, 1)
