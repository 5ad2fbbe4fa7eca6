"""The router: the formula on hand-computed numbers, the paper's rule, probes, bad names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import inf, log
from typing import cast

import pytest

from whiflash_engine.config import ArmName, RouterConfig, RouterName, Span
from whiflash_engine.errors import ConfigError
from whiflash_engine.events import Round, Seconds
from whiflash_engine.router.build import build_router
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.policies import Expected, StaticPolicy
from whiflash_engine.router.router import Decision, RouteContext, Router

ARMS: tuple[ArmName, ...] = ("ar", "diffusion", "plain")
WIDTH: dict[ArmName, int] = {"ar": 5, "diffusion": 8, "plain": 1}
DRAFT: dict[ArmName, float] = {"ar": 0.006, "diffusion": 0.003, "plain": 0.0}
VERIFY = 0.012


class Table:
    """A policy whose expectations are written down: for the whole draft, or by its length."""

    def __init__(self, **expected: float | Sequence[float]) -> None:
        self.expected = expected

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Expected:
        found = self.expected[arm]
        return (found,) if isinstance(found, float) else found

    def learn(self, round: Round) -> None:
        pass


def _context(entropy: float = 0.5, span: Span = "text", position: int = 7) -> RouteContext:
    return RouteContext(entropy, span, position, backlog=dict.fromkeys(ARMS, 1), width=WIDTH)


def _costs() -> CostModel:
    costs = CostModel()
    for arm in ARMS[:2]:
        costs.seed(arm, WIDTH[arm] - 1, DRAFT[arm])
    costs.seed_verify(5, VERIFY)
    return costs


def _round(
    decision: Decision, tokens: int, span: Span = "text", slow: float = 1.0,
    seconds: Seconds | None = None, backlog: int = 1,
) -> Round:  # fmt: skip
    arm = decision.arm
    seconds = seconds or Seconds(draft=DRAFT[arm] * slow, verify=VERIFY * slow)
    proposed = (0,) * decision.drafts
    tokens = min(tokens, decision.drafts + 1)
    return Round(
        arm, 9, (0,) * tokens, proposed, tokens - 1, len(proposed) + 1, span, 0.5, backlog, seconds,
        scores=decision.scores,
    )  # fmt: skip


# ---------------------------------------------------------------- the formula


def test_balance_zero_asks_for_tokens_a_round() -> None:
    router = Router(Table(ar=3.0, diffusion=2.9, plain=1.0), costs=_costs())
    decision = router.pick(_context())
    assert decision.arm == "ar"
    assert decision.scores == pytest.approx({"ar": log(3.0), "diffusion": log(2.9), "plain": 0.0})


def test_balance_one_asks_for_tokens_a_second() -> None:
    router = Router(Table(ar=3.0, diffusion=2.9, plain=1.0), balance=1.0, costs=_costs())
    decision = router.pick(_context())
    assert decision.arm == "diffusion"  # 2.9 / 15 ms beats 3.0 / 18 ms
    assert decision.scores == pytest.approx(
        {"ar": log(3.0 / 0.018), "diffusion": log(2.9 / 0.015), "plain": log(1 / 0.012)}
    )


def test_balance_between() -> None:
    router = Router(Table(ar=3.0, diffusion=2.0, plain=1.0), balance=0.5, costs=_costs())
    scores = router.pick(_context()).scores
    assert scores["ar"] == pytest.approx(log(3.0) - 0.5 * log(0.018))


@pytest.mark.parametrize(
    ("span", "favoured"),
    [("json", "diffusion"), ("tool_call", "diffusion"), ("reasoning", "ar"), ("text", None)],
)
def test_the_span_bias_is_a_log_unit_prior(span: Span, favoured: ArmName | None) -> None:
    # A tenth more tokens is what a bias of ln 1.1 can make up for.
    for rival_lead, wins in ((1.09, True), (1.11, False)):
        expected = {"ar": rival_lead, "diffusion": rival_lead, "plain": 0.5}
        if favoured:
            expected[favoured] = 1.0
        router = Router(Table(**expected), span_bias=log(1.1))
        decision = router.pick(_context(span=span))
        if favoured:
            assert (decision.arm == favoured) is wins
            assert decision.scores[favoured] == pytest.approx(log(1.1))
        else:
            assert decision.scores["ar"] == decision.scores["diffusion"]


def test_plain_where_drafting_does_not_pay() -> None:
    router = Router(Table(ar=1.3, diffusion=1.1, plain=1.0), balance=1.0, costs=_costs())
    assert router.pick(_context()).arm == "plain"
    assert Router(Table(ar=1.3, diffusion=1.1, plain=1.0)).pick(_context()).arm == "ar"


def test_a_draft_ends_where_one_more_token_does_not_pay() -> None:
    """Of copies, which say nothing of how good they are."""
    costs = CostModel()
    costs.seed_verify(1, 0.010)
    costs.seed_verify(5, 0.018)
    table = Table(retrieval=(1.5, 1.75, 1.875, 1.94), plain=1.0)
    context = _context()._replace(width={"retrieval": 5, "plain": 1})
    fast = Router(table, balance=1.0, costs=costs).pick(context)
    assert (fast.arm, fast.drafts) == ("retrieval", 2)  # 1.75 / 14 ms beats 1.5 / 12, 1.875 / 16
    assert fast.scores["retrieval"] == pytest.approx(log(1.75 / 0.014)) and fast.floor == 0.0
    long = Router(table, balance=0.0, costs=costs).pick(context)
    assert (long.arm, long.drafts) == ("retrieval", 4)


@pytest.mark.parametrize(("balance", "price"), [(1.0, 0.2), (0.5, 0.1), (0.0, 0.0)])
def test_a_drafter_is_told_what_a_token_costs(balance: float, price: float) -> None:
    """Ten rounds of 2 tokens in 20 ms: 100 tokens a second; one token more is a millisecond of
    drafting and one of verifying."""
    for policy in (Table(ar=3.0, diffusion=1.0, plain=1.0), StaticPolicy("ar")):
        costs = CostModel()
        costs.seed("ar", 1, 0.002)
        costs.seed("ar", 4, 0.005)
        costs.seed_verify(2, 0.012)
        costs.seed_verify(5, 0.015)
        router = Router(policy, balance=balance, costs=costs)
        assert router.pick(_context()).floor == 0.0  # it knows no pace yet
        for _ in range(10):
            router.learn(_round(Decision("plain", 1), 2, seconds=Seconds(pick=0.02)))
        told = router.pick(_context())
        assert (told.arm, told.drafts) == ("ar", 4)  # it may draft them all
        assert told.floor == pytest.approx(price)
        whole = Router(policy, balance=balance, whole_drafts=True, costs=costs)
        whole.learn(_round(Decision("plain", 1), 2))
        assert whole.pick(_context()).floor == 0.0


def test_no_clock_ends_the_drafts_of_a_sampled_text_under_one_arm() -> None:
    """So that a seed repeats it."""
    context = _context()
    for name in ("ar", "diffusion"):
        router = build_router(RouterConfig(name), ARMS, _costs())
        for draft in (0.001, 0.05):
            router.costs.seed(name, 1, draft)
            router.learn(_round(Decision("plain", 0), 1))
            assert router.pick(context._replace(sampled=True)).floor == 0.0
        router.costs.seed(name, 1, 0.001)
        assert router.pick(context).floor > 0.0


LATE: Mapping[ArmName, int] = {"ar": 1, "diffusion": 64, "plain": 0}


def _text(
    router: Router, rounds: int, backlog: Mapping[ArmName, int], *, generated: int = 0,
    room: int = 1000,
) -> list[ArmName]:  # fmt: skip
    """The arms of so many rounds, of three tokens each. backlog: at their beginning; who is picked
    has none from then on."""
    picks: list[ArmName] = []
    late = dict(backlog)
    for done in range(rounds):
        context = _context()._replace(
            backlog=dict(late), generated=generated + 3 * done, room=room - 3 * done
        )
        decision = router.pick(context)
        assert decision.arm == router.pick(context).arm  # asking costs nothing
        behind = late[decision.arm]
        caught_up = 0.030 if behind > 8 else 0.0
        paid = Seconds(catch_up=caught_up, draft=DRAFT[decision.arm], verify=VERIFY)
        router.learn(_round(decision, 3, seconds=paid, backlog=behind))
        late[decision.arm] = 1
        picks.append(decision.arm)
    return picks


def _late() -> CostModel:
    costs = _costs()
    for arm in ARMS[:2]:
        costs.seed_catch_up(arm, 1, 0.0)
        costs.seed_catch_up(arm, 64, 0.030)
    return costs


def test_a_long_text_pays_for_catching_up_and_short_ones_do_not() -> None:
    """Diffusion saves 3.6 ms a round, and has 30 ms of catching up before it."""
    table = Table(ar=2.9, diffusion=3.0, plain=1.0)
    router = Router(table, balance=1.0, costs=_late())
    for _ in range(50):
        assert "diffusion" not in _text(router, 2, LATE)
    long = _text(router, 40, LATE)
    bought = long.index("diffusion")
    assert 2 <= bought <= 9 and {*long[bought:]} == {"diffusion"}
    ends = _text(router, 3, LATE, generated=90, room=6)  # no time to pay it back
    assert "diffusion" not in ends
    for_tokens = Router(table, balance=0.0, costs=_late())
    assert {*_text(for_tokens, 9, LATE)} == {"diffusion"}


class BeginsWell:
    """Diffusion is the better arm in the first round of a text only."""

    def candidates(self, arms: Sequence[ArmName]) -> Sequence[ArmName]:
        return arms

    def expect(self, arm: ArmName, context: RouteContext) -> Sequence[float]:
        best: ArmName = "ar" if context.generated else "diffusion"
        return ({best: 4.0, "plain": 1.0}.get(arm, 2.0),)

    def learn(self, round: Round) -> None: ...


def test_who_takes_a_text_in_first_goes_by_the_average() -> None:
    none_ready: Mapping[ArmName, int] = {"ar": 64, "diffusion": 64, "plain": 0}
    router = Router(BeginsWell(), balance=1.0, costs=_late())
    # it knows no better than that diffusion drafts for less
    assert _text(router, 9, none_ready)[0] == "diffusion"
    for _ in range(5):
        assert {*_text(router, 9, none_ready)} == {"ar"}
    # behind a copy: AR has seven positions to take in, diffusion the whole text
    assert _text(router, 1, {"ar": 7, "diffusion": 64, "plain": 0}, generated=30) == ["ar"]
    both_ready: Mapping[ArmName, int] = {"ar": 1, "diffusion": 1, "plain": 0}
    assert _text(router, 3, both_ready) == ["diffusion", "ar", "ar"]


@pytest.mark.parametrize(("seconds", "first"), [(0.003, "diffusion"), (0.009, "ar")])
def test_before_any_round_what_drafts_cost_decides_who_takes_a_text_in(
    seconds: float, first: ArmName
) -> None:
    costs = _late()
    costs.seed("diffusion", WIDTH["diffusion"] - 1, seconds)
    none_ready: Mapping[ArmName, int] = {"ar": 64, "diffusion": 64, "plain": 0}
    assert _text(Router(BeginsWell(), balance=1.0, costs=costs), 1, none_ready) == [first]


def test_a_span_bias_saves_nothing() -> None:
    """Drafters are equal: a prior for one of them does not pay for its catching up."""
    table = Table(ar=3.0, diffusion=3.0, plain=1.0)
    costs = _late()
    costs.seed("ar", WIDTH["ar"] - 1, DRAFT["diffusion"])
    costs.seed_verify(8, VERIFY)
    router = Router(table, balance=1.0, span_bias=0.05, costs=costs)
    for _ in range(40):
        ready = _context(span="json")._replace(backlog=dict.fromkeys(ARMS, 1))
        router.learn(_round(router.pick(ready), 3, span="json"))
    late = _context(span="json")._replace(backlog=LATE, generated=400)
    scores = router.pick(late).scores
    assert scores["diffusion"] < scores["ar"], "30 ms for nothing but a wish"


def test_who_takes_a_text_in_first_heeds_the_span_bias() -> None:
    costs = _late()
    costs.seed("diffusion", WIDTH["diffusion"] - 1, 0.009)
    none_ready: Mapping[ArmName, int] = {"ar": 64, "diffusion": 64, "plain": 0}
    context = _context(span="json")._replace(backlog=none_ready)
    for bias, first in ((0.0, "ar"), (1.0, "diffusion")):
        router = Router(
            Table(ar=2.0, diffusion=2.0, plain=1.0), balance=1.0, span_bias=bias, costs=costs
        )
        assert router.pick(context).arm == first


def test_a_probe_is_not_worth_much_catching_up() -> None:
    def probes(seconds: float) -> int:
        costs = _costs()
        costs.seed_catch_up("diffusion", 64, seconds)
        table = Table(ar=3.0, diffusion=1.5, plain=1.0)
        router = Router(table, balance=1.0, probed=["diffusion"], costs=costs)
        found = 0
        for _ in range(1000):
            decision = router.pick(_context()._replace(backlog=LATE))
            router.learn(_round(decision, 1))
            found += decision.arm == "diffusion"
        return found

    assert probes(0.0) >= 10
    assert probes(0.010) == 2, "after 334 rounds of 15 ms it takes two thousandths of them"
    assert probes(1.0) == 0


def test_a_probe_drafts_all_it_can() -> None:
    router = Router(Table(ar=3.0, diffusion=(1.9, 1.8), plain=1.0), probed=["diffusion"])
    probes = []
    for _ in range(40):
        decision = router.pick(_context())
        router.learn(_round(decision, 1))
        probes += [decision] if decision.arm == "diffusion" else []
    assert probes and all(probe.drafts == WIDTH["diffusion"] - 1 for probe in probes)


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("entropy", "tau", "arm"),
    [(0.51, 0.5, "ar"), (0.5, 0.5, "diffusion"), (0.4, 0.5, "diffusion"), (0.1, 0.0, "ar"),
     (9.0, 1e6, "diffusion"), (9.0, inf, "diffusion")],
)  # fmt: skip
def test_entropy_is_the_papers_rule(entropy: float, tau: float, arm: ArmName) -> None:
    config = RouterConfig("entropy", entropy_threshold=tau, span_bias=0.0)
    router = build_router(config, ARMS)
    assert router.pick(_context(entropy)).arm == arm


def test_a_span_bias_shifts_the_papers_threshold() -> None:
    router = build_router(RouterConfig("entropy", entropy_threshold=0.5, span_bias=0.2), ARMS)
    decision = router.pick(_context(0.55, "json"))
    assert decision.arm == "diffusion"
    assert decision.scores == pytest.approx({"ar": 0.05, "diffusion": 0.15})
    assert router.pick(_context(0.61, "json")).arm == "ar"


@pytest.mark.parametrize("name", ["ar", "diffusion", "plain"])
def test_static_routers_have_no_choice(name: RouterName) -> None:
    router = build_router(RouterConfig(name), ARMS)
    assert router.pick(_context()) == Decision(cast(ArmName, name), WIDTH[cast(ArmName, name)] - 1)
    assert router.pick(_context()._replace(width={"plain": 1})) == Decision("plain", 0)


def test_random_uses_every_arm_and_is_known() -> None:
    picks = [
        build_router(RouterConfig("random", seed=5), ARMS).pick(_context(position=p)).arm
        for p in range(300)
    ]
    assert min(Counter(picks).values()) > 70 and len({*picks}) == 3
    router = build_router(RouterConfig("random", seed=5), ARMS)
    assert picks == [router.pick(_context(position=p)).arm for p in range(300)]


def test_names_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="router='ar'"):
        build_router(RouterConfig("ar"), ("diffusion", "plain"))
    with pytest.raises(ConfigError, match="router='entropy'"):
        build_router(RouterConfig("entropy"), ("ar", "plain"))
    with pytest.raises(ConfigError, match="arm='medusa'"):
        build_router(RouterConfig("auto"), cast("tuple[ArmName, ...]", ("ar", "medusa")))
    with pytest.raises(ConfigError, match="router='medusa'"):
        RouterConfig(cast(RouterName, "medusa"))


# ---------------------------------------------------------------- learning


def _play(
    router: Router, tokens: Callable[[ArmName, int], int], rounds: int, slow: float = 1.0
) -> list[ArmName]:
    picks: list[ArmName] = []
    for i in range(rounds):
        decision = router.pick(_context())
        router.learn(_round(decision, tokens(decision.arm, i), slow=slow))
        picks.append(decision.arm)
    return picks


@pytest.mark.parametrize(
    ("lengths", "best"),
    [
        ({"ar": 4, "diffusion": 2, "plain": 1}, "ar"),
        ({"ar": 3, "diffusion": 6, "plain": 1}, "diffusion"),
        ({"ar": 1, "diffusion": 1, "plain": 1}, "plain"),
    ],
)
def test_auto_finds_the_arm_that_pays(lengths: dict[ArmName, int], best: ArmName) -> None:
    router = build_router(RouterConfig("auto"), ARMS, _costs())
    picks = _play(router, lambda arm, i: lengths[arm], 400)
    assert Counter(picks[30:])[best] >= 0.95 * 370
    assert len({*picks}) == 3  # each was tried
    assert best == "plain" or Counter(picks)["plain"] <= 3  # what it brings is known


def test_auto_notices_that_the_text_has_changed() -> None:
    router = build_router(RouterConfig("auto"), ARMS, _costs())
    _play(router, lambda arm, i: {"ar": 4, "diffusion": 2, "plain": 1}[arm], 300)
    after = _play(router, lambda arm, i: {"ar": 2, "diffusion": 8, "plain": 1}[arm], 600)
    assert Counter(after[300:])["diffusion"] > 270


def test_auto_goes_by_what_the_machine_costs_now() -> None:
    """Equal tokens; then drafting of one arm becomes slow."""
    router = build_router(RouterConfig("auto"), ARMS, _costs())
    lengths: dict[ArmName, int] = {"ar": 4, "diffusion": 4, "plain": 1}
    before = _play(router, lambda arm, i: lengths[arm], 100)
    assert Counter(before[20:])["diffusion"] > 70
    for _ in range(40):
        router.costs.learn(
            Round("diffusion", 9, (0,), (0,) * 7, 3, 8, "text", 0.5, 1, Seconds(draft=0.05))
        )
    after = _play(router, lambda arm, i: lengths[arm], 10)
    assert Counter(after)["ar"] >= 8


def test_probes_become_rare_and_are_known() -> None:
    def picks() -> list[ArmName]:
        router = build_router(RouterConfig("auto"), ARMS, _costs())
        return _play(router, lambda arm, i: {"ar": 4, "diffusion": 1, "plain": 1}[arm], 1000)

    first = picks()
    assert first == picks()
    assert sum(arm != "ar" for arm in first[:100]) >= 4
    assert 2 <= sum(arm != "ar" for arm in first[500:]) <= 10


def test_a_router_without_probes_never_strays() -> None:
    router = Router(Table(ar=3.0, diffusion=2.0, plain=1.0))
    assert {*_play(router, lambda arm, i: 1, 300)} == {"ar"}


def test_picking_changes_nothing() -> None:
    router = build_router(RouterConfig("auto"), ARMS, _costs())
    _play(router, lambda arm, i: 2, 17)
    assert len({router.pick(_context()).arm for _ in range(50)}) == 1
