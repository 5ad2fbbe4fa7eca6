"""The replay makes the rounds that the loop makes, on tiny random networks."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from tests.test_measure import short, silent
from tests.toys import Prophet
from whiflash_agents.cli import main
from whiflash_agents.measure import replay as replay_module
from whiflash_agents.measure.methods import COMPARISONS
from whiflash_agents.measure.prompts import KINDS, balanced, shipped
from whiflash_agents.measure.recording import Draft, Place, Recording, record
from whiflash_agents.measure.replay import Charges, Told, foresight, replay
from whiflash_agents.measure.replayed import FORESIGHT, measure_replay, replayable
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import ArmName, RouterConfig
from whiflash_engine.decode import decode
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError
from whiflash_engine.events import Round, Seconds, tokens_of
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.decision import Decision
from whiflash_engine.router.policies import RandomPolicy, RouteContext
from whiflash_engine.router.router import Router
from whiflash_engine.sampling import Sampler

TOKENS = 40


def _costs() -> CostModel:
    costs = CostModel()
    for width in range(1, 14):
        costs.seed_verify(width, 0.010 + 0.001 * width)
    drafting: Mapping[ArmName, float] = {"ar": 0.001, "diffusion": 0.003}
    for arm, seconds in drafting.items():
        costs.seed(arm, 1, seconds)
        costs.seed(arm, 5, seconds + 0.001)
        costs.seed_catch_up(arm, 1, 0.0001)
        costs.seed_catch_up(arm, 64, 0.004)
    return costs


@pytest.fixture
def start(engine: Engine) -> PromptStart:
    """Of a prompt from which drafters are often right, now more and now less (see `Prophet`)."""
    for word in ("h", "hi", "hid", "hide", "hides"):
        prompt = replace(shipped()[0], messages=[{"role": "user", "content": word}])
        plain = PromptStart(engine, prompt, TOKENS)
        text = tokens_of(plain.run(RouterConfig("plain"), grammar=False))
        if len(text) == TOKENS and len(plain.ids) % 5 != 4:
            break
    else:
        pytest.fail("no such prompt")
    known = [*plain.ids, *text]
    engine.drafters = {arm: Prophet(one, known) for arm, one in engine.drafters.items()}
    return PromptStart(engine, prompt, TOKENS)


def _replayed(start: PromptStart, config: RouterConfig, costs: CostModel) -> list[Told]:
    router = start.engine.fresh_router(config)
    return list(replay(record(start), router, Charges(costs), random.Random(0)))


class Spy(Router):
    """Any arm and any length, by position alone; notes what it is told."""

    def __init__(self, floor: float) -> None:
        super().__init__(RandomPolicy(0))
        self.floor, self.seen, self.heard = floor, list[RouteContext](), list[Round]()

    def pick(self, context: RouteContext) -> Decision:
        hidden = context.hidden
        self.seen.append(context._replace(hidden=None if hidden is None else hidden.clone()))
        draw = random.Random(context.position)
        arm = draw.choice([*context.width])
        drafts = draw.randint(min(1, context.width[arm] - 1), context.width[arm] - 1)
        return Decision(arm, drafts, {arm: 1.0}, self.floor)

    def learn(self, round: Round) -> None:
        self.heard.append(replace(round, seconds=Seconds(), finish_reason=None))


@pytest.mark.parametrize("floor", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("stops", [False, True])
def test_a_router_is_told_what_the_loop_tells(
    start: PromptStart, floor: float, stops: bool
) -> None:
    engine = start.engine
    if stops:  # a draft goes on behind the text's end
        first, *_ = tokens_of(start.run(RouterConfig("plain"), grammar=False))
        start.sampling = replace(start.sampling, stop_token_ids=(first,))
    there, here = Spy(floor), Spy(floor)
    loop = list(
        decode(engine.target, engine.drafters, there, start.rewound(grammar=False), start.sampling)
    )
    recording = record(start)
    told = list(replay(recording, here, Charges(_costs()), random.Random(0)))
    assert tuple(tokens_of(loop)) == recording.tokens
    assert len(here.seen) == len(there.seen) == len(told)
    for ours, theirs in zip(here.seen, there.seen, strict=True):
        if theirs.hidden is not None:  # of a pass of another width
            assert ours.hidden is not None and torch.allclose(ours.hidden, theirs.hidden, atol=1e-4)
        assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-4)
        assert ours._replace(hidden=None, entropy=0) == theirs._replace(hidden=None, entropy=0)
    for mine, its in zip(here.heard, there.heard, strict=True):
        assert mine.doubt == (its.doubt and pytest.approx(its.doubt, rel=1e-3))
        assert replace(mine, doubt=None, entropy=0.0) == replace(its, doubt=None, entropy=0.0)
        assert mine.tried == its.tried
    if stops:
        assert loop[-1].accepted == len(loop[-1].tokens), "the last token was drafted"
        return
    accepted = {round.accepted for round in loop}
    assert len(accepted) > 2 and {round.arm for round in loop} >= {"ar", "diffusion", "plain"}
    if floor == 1e-3:
        assert any(round.doubt for round in loop)


@pytest.mark.parametrize(
    "config",
    [
        RouterConfig("plain"),
        RouterConfig("ar", whole_drafts=True),
        RouterConfig("retrieval"),
        # without costs no clock has a say
        RouterConfig(balance=0.0),
        RouterConfig(balance=0.0, retrieval=False),
    ],
    ids=["plain", "ar", "retrieval", "auto", "no copies"],
)
def test_rounds_are_those_of_the_loop(start: PromptStart, config: RouterConfig) -> None:
    loop = start.run(config, grammar=False)
    told = [one.round for one in _replayed(start, config, _costs())]
    made = [(r.arm, r.position, r.tokens, r.proposed, dict(r.scores)) for r in told]
    assert made == [(r.arm, r.position, r.tokens, r.proposed, dict(r.scores)) for r in loop]


def test_seconds_are_the_calibrated_ones(start: PromptStart) -> None:
    costs, before = _costs(), _costs()
    charges = Charges(costs)
    late = 0
    for one in _replayed(start, RouterConfig("random", seed=3), costs):
        done, width = one.round, len(one.round.proposed) + 1
        expected = costs.expected(done.arm, width, width, done.position)[0]
        if done.seconds.catch_up:
            late += 1
            expected += charges.catch_up(done.arm, done.backlog, done.left + width)
        assert one.seconds == pytest.approx(expected)
        assert done.seconds.total != one.seconds, "the router hears of them with noise"
    assert late > 0, "nobody ever came back"
    for width in range(1, 14):
        assert charges.verify(width, 7) == before.expected("plain", width, width, 7)[0]


def test_nobody_is_faster_than_foresight(start: PromptStart) -> None:
    costs = _costs()
    recording = record(start)
    least = foresight(recording, Charges(costs))
    configs = [RouterConfig(name) for name in ("plain", "ar", "diffusion", "retrieval", "auto")]
    spent = [sum(one.seconds for one in _replayed(start, c, costs)) for c in configs]
    assert 0 < least < min(spent)


def _written(text: Sequence[int], drafted: Sequence[int]) -> Recording:
    """AR drafts so at the beginning, and nothing anywhere else."""
    places = []
    for at in range(len(text)):
        draft = tuple(drafted) if at == 0 else ()
        context = RouteContext(0.0, "text", 7 + at, {"plain": 0}, {"plain": 1})
        places.append(Place(context, {"ar": Draft(draft, (1.0,) * len(draft), looks=False)}))
    return Recording("chat", tuple(text), tuple(places))


def test_foresight_drafts_no_token_that_costs_more_than_it_brings() -> None:
    steps = CostModel()  # a pass over three costs as much as four over one
    for width, seconds in ((1, 1.0), (2, 1.0), (3, 4.0), (4, 4.0)):
        steps.seed_verify(width, seconds)
    steps.seed("ar", 1, 0.5)
    steps.seed("ar", 2, 1.0)
    # one token drafted, one for nothing, one by itself
    assert foresight(_written((5, 6, 7), (5, 6, 8)), Charges(steps)) == pytest.approx(1.5 + 1.0)
    # the last token of a text comes undrafted
    assert foresight(_written((5, 6), (5, 6)), Charges(steps)) == pytest.approx(1.5)


@pytest.mark.parametrize("arm", ["ar", "diffusion"])
def test_a_recorded_draft_ends_where_the_drafter_would_end_it(engine: Engine, arm: ArmName) -> None:
    start = PromptStart(engine, short(balanced(shipped(), 1))[0], 12)
    recording = record(start)
    sequence, sampler = start.rewound(grammar=False), Sampler(start.sampling)
    sequence.prefill()
    drafter, state = engine.drafters[arm], sequence.drafts[arm]
    drafter.ingest(state, sequence.log, sequence.tokens)
    draft = recording.places[0].drafts[arm]
    assert len(draft.tokens) == len(draft.chances) == drafter.max_draft
    ends = set()
    for count in range(1, drafter.max_draft + 1):
        for power in range(0, 40):
            floor = 0.5**power
            proposal = drafter.propose(state, sequence.tokens, count, sampler, (), floor)
            tokens, doubt = draft.until(count, floor)
            assert tokens == proposal.tokens
            assert doubt == (proposal.doubt and pytest.approx(proposal.doubt, rel=1e-4))
            ends.add(len(tokens))
    assert ends == set(range(1, drafter.max_draft + 1))


def test_what_no_router_decides_is_not_replayed() -> None:
    left = replayable(COMPARISONS["ablation"])
    gone = COMPARISONS["ablation"].keys() - left.keys()
    assert gone == {"with hindsight", "no lazy catch-up", "no kv-only"}


def test_every_repeat_begins_anew(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = short(balanced(shipped(), 1))
    ways = {name: COMPARISONS["routers"][name] for name in ("plain", "averages")}
    once = measure_replay(engine, prompts, 30, ways, 1, silent)
    assert set(once) == {*ways, FORESIGHT}
    assert all(set(one["by_kind"]) == set(KINDS) for one in once.values())
    monkeypatch.setattr(replay_module, "_NOISE", 0.0)
    alike = [measure_replay(engine, prompts, 30, ways, repeats, silent) for repeats in (1, 3)]
    for name in ways:
        first, thrice = (found[name]["tokens_per_second"] for found in alike)
        assert thrice == pytest.approx(first), "what a router has learned is forgotten"


def test_a_way_that_is_not_open_is_told_before_the_work(engine: Engine) -> None:
    prompts = short(balanced(shipped(), 1))
    left: dict[ArmName, Drafter] = {"ar": engine.drafters["ar"]}
    engine = Engine(engine.target, left, engine.tokenizer, stop_token_ids=())
    with pytest.raises(ConfigError, match="diffusion"):
        measure_replay(engine, prompts, 8, COMPARISONS["routers"], 1, pytest.fail)
    ways = replayable(COMPARISONS["dial"])
    assert measure_replay(engine, prompts, 8, ways, 1, silent)["plain"]


def test_replay_from_the_command_line(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from whiflash_agents.measure import prompts

    rows = short(shipped())
    monkeypatch.setattr(prompts, "shipped", lambda: rows)
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    options = ["--per-kind", "1", "--tokens", "8", "--repeats", "1"]
    assert main(["replay", *options]) == 0
    shown = capsys.readouterr()
    result: Mapping[str, object] = json.loads(shown.out.splitlines()[-1])
    assert result["prompts"] == 4
    for word in ("method", "foresight", "auto", *KINDS):
        assert word in shown.err
    assert main(["replay", *options[:-1], "0"]) == 2
    assert "repeats=0" in capsys.readouterr().err
