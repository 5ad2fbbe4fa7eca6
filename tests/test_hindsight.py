"""Idle drafters are told what they would have drafted, and nothing else changes."""

from __future__ import annotations

import pytest

from tests.toys import ToyConstraint, ToyTarget, new_sequence, toy_drafters
from whiflash_engine.config import RouterConfig, SamplingConfig
from whiflash_engine.decode import decode
from whiflash_engine.errors import ConfigError
from whiflash_engine.events import Round, tokens_of
from whiflash_engine.features import FeatureLog
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
        forced = last.proposed[: last.forced]
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
