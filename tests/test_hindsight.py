"""Idle drafters are told what they would have drafted, and nothing else changes."""

from __future__ import annotations

import pytest

from tests.toys import (
    TINY,
    ToyConstraint,
    ToyTarget,
    new_sequence,
    tiny_drafters,
    tiny_target,
    toy_drafters,
)
from whiflash_engine.config import ArmName, RouterConfig, SamplingConfig
from whiflash_engine.decode import decode
from whiflash_engine.errors import ConfigError
from whiflash_engine.events import Round, Seconds, tokens_of
from whiflash_engine.features import FeatureLog
from whiflash_engine.hindsight import Known, could_look_back, in_hindsight
from whiflash_engine.lookup import common
from whiflash_engine.router.policies import RandomPolicy
from whiflash_engine.router.router import Router
from whiflash_engine.sampling import Sampler

PROMPT = [1, 2, 3]


class Listening(Router):
    """Any arm, evenly; keeps what idle ones are told."""

    def __init__(self, hindsight: float) -> None:
        super().__init__(RandomPolicy(4), hindsight=hindsight)
        self.told: list[Round] = []

    def learn_idle(self, round: Round) -> None:
        super().learn_idle(round)
        self.told.append(round)


def _forced(tokens: list[int], start: int) -> tuple[int, ...]:
    """What `ToyConstraint` forces there, of what was committed."""
    return {2: (5, 0), 5: (0,)}.get(tokens[start - 1], ()) if start > len(PROMPT) else ()


def _decoded(
    target: ToyTarget, hindsight: float, temperature: float, forcing: bool
) -> tuple[list[Round], list[Round]]:
    """The rounds, and what idle arms were told."""
    drafters, router = toy_drafters(target), Listening(hindsight)
    constraint = ToyConstraint(9, forcing=True) if forcing else None
    sequence = new_sequence(target, drafters, PROMPT, max_tokens=120, constraint=constraint)
    sampling = SamplingConfig(max_tokens=120, temperature=temperature)
    return list(decode(target, drafters, router, sequence, sampling)), router.told


@pytest.mark.parametrize("forcing", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_an_idle_drafter_is_held_to_the_text(seed: int, temperature: float, forcing: bool) -> None:
    target = ToyTarget(9, seed)
    rounds, told = _decoded(target, 1.0, temperature, forcing)
    unasked, nothing = _decoded(target, 0.0, temperature, forcing)
    assert tokens_of(rounds) == tokens_of(unasked) and not nothing
    assert [r.arm for r in rounds] == [r.arm for r in unasked]
    tokens = PROMPT + tokens_of(rounds)
    began = {r.position: r for r in rounds}
    assert len(told) > 5
    for one in told:
        last, start = began[one.position], one.position
        assert one.arm in ("ar", "diffusion") and one.arm != last.arm
        assert (one.span, one.entropy) == (last.span, last.entropy)
        # one that has just taken in all that came before would draft the same
        drafter = toy_drafters(target)[one.arm]
        state, log = drafter.new_state(200), FeatureLog(2, target.dtype, target.device)
        log.append(target.forward(tokens[: start - 1], target.new_cache(200), rows=1).features)
        drafter.ingest(state, log, tokens[:start])
        count = min(drafter.max_draft, len(last.tokens))
        forced = _forced(tokens, start) if forcing else ()
        assert one.forced == len(forced) < count
        greedy = Sampler(SamplingConfig())
        assert one.proposed == drafter.propose(state, tokens[:start], count, greedy, forced).tokens
        passed = common(one.proposed, last.tokens)
        assert one.accepted == passed and one.tokens == last.tokens[: passed + 1]
        whole = passed == len(last.tokens)  # nobody knows what it would have gone on with
        assert one.tried == (passed - one.forced, (passed if whole else count) - one.forced)


def test_a_sample_of_the_catch_ups() -> None:
    target = ToyTarget(9, 1)
    every, some = (len(_decoded(target, share, 0.0, False)[1]) for share in (1.0, 0.4))
    assert 0 < some < every


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_lies_between_none_and_all(share: float) -> None:
    with pytest.raises(ConfigError, match="hindsight"):
        RouterConfig(hindsight=share)


@pytest.mark.parametrize("arm", ["ar", "diffusion"])
def test_looking_back_leaves_a_drafter_as_it_would_have_been(arm: ArmName) -> None:
    """Of real networks: keys, words of the text, and what it drafts next."""
    target = tiny_target()
    drafter, tokens = tiny_drafters(target)[arm], [7 * i % 50 for i in range(40)]
    log = FeatureLog(len(target.taps) * TINY.hidden_size, target.dtype, target.device)
    log.append(target.forward(tokens[:-1], target.new_cache(64), rows=1).features)
    greedy = Sampler(SamplingConfig())
    states = [drafter.new_state(64) for _ in range(2)]
    for state in states:
        drafter.ingest(state, log.until(9), tokens[:10])
    start = 33
    last = Round(
        "plain", start, tuple(tokens[start:]), (), 0, 1, "text", 0.5, 0, Seconds(verify=1.0)
    )  # fmt: skip
    known = Known(last, 0)
    assert could_look_back(drafter, states[0], known)
    drafter.ingest(states[0], log.until(start - 1), tokens[:start])
    told = in_hindsight(arm, drafter, states[0], tokens, known)
    assert told.arm == arm and len(told.proposed) == drafter.max_draft
    assert told.seconds == Seconds() and told.position == start
    for state in states:
        drafter.ingest(state, log, tokens)
    looked, straight = (drafter.propose(s, tokens, drafter.max_draft, greedy) for s in states)
    assert looked == straight and states[0].watermark == states[1].watermark
    assert not could_look_back(drafter, states[0], known), "it has gone further"
