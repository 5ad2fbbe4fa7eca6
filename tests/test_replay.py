"""The replay makes the rounds that the loop makes, on tiny random networks."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.test_measure import short, silent
from tests.toys import Prophet
from whiflash_agents.cli import main
from whiflash_agents.measure.methods import COMPARISONS
from whiflash_agents.measure.prompts import KINDS, balanced, shipped
from whiflash_agents.measure.recording import Draft, record
from whiflash_agents.measure.replay import Charges, Told, foresight, replay
from whiflash_agents.measure.replayed import FORESIGHT, measure_replay, replayable
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import ArmName, RouterConfig
from whiflash_engine.engine import Engine
from whiflash_engine.events import Round, tokens_of
from whiflash_engine.router.costs import CostModel
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


@pytest.mark.parametrize(
    "config",
    [
        RouterConfig("plain"),
        RouterConfig("ar", whole_drafts=True),
        RouterConfig("diffusion", whole_drafts=True),
        RouterConfig("retrieval"),
        RouterConfig("random", seed=3),
        # without costs no clock has a say
        RouterConfig(balance=0.0),
        RouterConfig(balance=0.0, every_round=True, retrieval=False),
    ],
    ids=lambda c: f"{c.name} {c.balance:g}",
)
def test_rounds_are_those_of_the_loop(start: PromptStart, config: RouterConfig) -> None:
    loop = start.run(config, grammar=False)
    told = [one.round for one in _replayed(start, config, _costs())]

    def made(rounds: list[Round]) -> list[tuple[object, ...]]:
        return [
            (r.arm, r.position, r.tokens, r.proposed, r.accepted, r.verified, r.span, r.entropy,
             r.backlog, r.matched, r.left, r.doubt, dict(r.scores))
            for r in rounds
        ]  # fmt: skip

    assert made(told) == made(loop)
    if config.name not in ("plain", "retrieval"):
        assert {r.accepted for r in loop} >= {0, 1, 2}


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
    # one token a round is the most it could take
    assert least < len(recording.tokens) * Charges(costs).verify(
        1, recording.places[-1].context.position
    )


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


def test_a_text_ends_where_it_ends() -> None:
    """A draft that goes on behind the last token commits what there is."""
    draft = Draft((5, 6, 7), (1.0, 1.0, 1.0), looks=True)
    assert draft.until(2, 0.0) == ((5, 6), None)


def test_what_no_router_decides_is_not_replayed() -> None:
    left = replayable(COMPARISONS["ablation"])
    gone = COMPARISONS["ablation"].keys() - left.keys()
    assert gone == {"with hindsight", "no lazy catch-up", "no kv-only"}


def test_every_repeat_begins_anew(engine: Engine) -> None:
    prompts = short(balanced(shipped(), 1))
    ways = replayable(COMPARISONS["routers"])
    once = measure_replay(engine, prompts, 12, ways, 1, silent)
    assert once == measure_replay(engine, prompts, 12, ways, 1, silent)
    assert set(once) == {*ways, FORESIGHT}
    twice = measure_replay(engine, prompts, 12, ways, 2, silent)
    assert twice["ar"]["tokens_per_second"] == pytest.approx(
        once["ar"]["tokens_per_second"], rel=0.2
    )
    for one in once.values():
        assert set(one["by_kind"]) == set(KINDS)


def test_replay_from_the_command_line(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from whiflash_agents.measure import prompts

    rows = short(shipped())
    monkeypatch.setattr(prompts, "shipped", lambda: rows)
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    options = ["--per-kind", "1", "--tokens", "8", "--repeats", "1"]
    assert main(["replay", *options, "--shuffle", "1"]) == 0
    shown = capsys.readouterr()
    result: Mapping[str, object] = json.loads(shown.out.splitlines()[-1])
    assert result["prompts"] == 4
    for word in ("method", "foresight", "auto", *KINDS):
        assert word in shown.err
    assert main(["replay", *options[:-1], "0"]) == 2
    assert "repeats=0" in capsys.readouterr().err
