"""Where drafts end by themselves: the rule, and every drafter that follows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import pytest
import torch
from torch import Tensor

from tests import toys
from tests.test_decode import sampled_p
from whiflash_engine.checkpoints.eagle3 import eagle3_shapes
from whiflash_engine.config import SamplingConfig
from whiflash_engine.drafters.base import Chooser, Drafter, DraftState, Proposal
from whiflash_engine.drafters.eagle3 import Eagle3Drafter
from whiflash_engine.drafters.ending import Ending, chances
from whiflash_engine.features import FeatureLog
from whiflash_engine.router.router import Router
from whiflash_engine.sampling import Sampler
from whiflash_engine.target.native import NativeTarget

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 7]


def _row(largest: float) -> Tensor:
    """Logits of one row with that largest probability among ten."""
    return torch.tensor([[largest, *[(1 - largest) / 9] * 9]]).log()


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chance_is_the_square_of_the_largest_probability(
    sampled: bool, dtype: torch.dtype
) -> None:
    """By numpy, and by torch where numpy may not look."""
    rows = torch.cat([_row(0.9), _row(0.3), _row(1.0)]).to(dtype)
    found = chances(rows, rows.softmax(-1) if sampled else None, 0.1)
    assert found == pytest.approx([0.81, 0.09, 1.0])
    assert chances(rows, None, 0.0) == [1.0] * 3  # nobody has asked


def test_a_draft_goes_on_while_all_of_it_is_likely_enough() -> None:
    ending = Ending(0.4)
    assert not ending.before(0.8) and not ending.before(0.7) and not ending.over
    assert ending.before(0.6) and ending.over
    assert ending.doubt == 0.6


def test_the_first_token_is_always_drafted() -> None:
    ending = Ending(0.5)
    assert not ending.before(0.1) and ending.doubt is None
    assert ending.over, "no other can bring the chance up again"
    assert ending.before(1.0)


def test_without_a_floor_no_draft_ends() -> None:
    ending = Ending(0.0)
    assert not any(ending.before(1e-9) for _ in range(99)) and not ending.over


class _Recorder(Sampler):
    """Keeps the chances of the tokens that it chose, by the definition."""

    def choose(self, logits: Tensor, position: int, start: int) -> tuple[list[int], Tensor | None]:
        chosen, q = super().choose(logits, position, start)
        self.chances = getattr(self, "chances", [])
        self.chances += ((logits.softmax(-1) if q is None else q).amax(1) ** 2).tolist()
        return chosen, q


def _started(drafter: Drafter, target: NativeTarget) -> DraftState:
    output = target.forward(TOKENS[:-1], target.new_cache(20), rows=1)
    log = FeatureLog(output.features.shape[1], target.dtype, target.device)
    log.append(output.features)
    state = drafter.new_state(len(TOKENS))
    drafter.ingest(state, log, TOKENS)
    return state


def _eagle3(target: NativeTarget, *, chained: bool, reduced: bool = False) -> Eagle3Drafter:
    config, _ = toys.tiny_eagle3_parts(target)
    weights = toys._random(eagle3_shapes(config)[0], 5, torch.float32)
    if reduced:
        weights["draft_ids"] = torch.arange(0, 61, 12)
    drafter = Eagle3Drafter(config, weights, target, 6)
    assert drafter._chain is not None
    if not chained:
        drafter._chain = None
    return drafter


def _floors(chances: Sequence[float]) -> list[tuple[int, float]]:
    """For every length but the whole, a floor that ends there."""
    left = list(accumulate(chances, mul))
    return [(k, (left[k - 1] * left[k]) ** 0.5) for k in range(1, len(left))]


@pytest.mark.parametrize("known", [(), (8, 2)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_a_floor_changes_nothing_but_the_length(
    kind: str, temperature: float, known: tuple[int, ...]
) -> None:
    target = toys.tiny_target()
    drafter: Drafter = toys.tiny_dflash(target)
    if kind == "ar":
        drafter = _eagle3(target, chained=False)
    state, config = _started(drafter, target), SamplingConfig(temperature=temperature, seed=5)
    recorder, count = _Recorder(config), drafter.max_draft
    whole = drafter.propose(state, TOKENS, count, recorder, known)
    assert len(whole.tokens) == count and whole.doubt is None
    for own, floor in _floors(recorder.chances):
        short = drafter.propose(state, TOKENS, count, Sampler(config), known, floor)
        length = len(known) + own
        assert short.tokens == whole.tokens[:length]
        assert short.doubt == pytest.approx(recorder.chances[own])
        assert (short.q is None) == (whole.q is None)
        if short.q is not None and whole.q is not None:
            assert torch.equal(short.q, whole.q[:length])
    hopeless = drafter.propose(state, TOKENS, count, Sampler(config), known, 1.0)
    assert hopeless.tokens == whole.tokens[: len(known) + 1]


@pytest.mark.parametrize("reduced", [False, True])
def test_a_chain_at_once_ends_where_its_steps_do(reduced: bool) -> None:
    target, sampler = toys.tiny_target(), Sampler(SamplingConfig())
    fast, slow = (_eagle3(target, chained=chained, reduced=reduced) for chained in (True, False))
    states = [_started(drafter, target) for drafter in (fast, slow)]
    recorder = _Recorder(SamplingConfig())
    slow.propose(states[1], TOKENS, 6, recorder)
    for _, floor in [*_floors(recorder.chances), (1, 1.0), (6, 1e-30)]:
        found, wanted = (
            drafter.propose(state, TOKENS, 6, sampler, floor=floor)
            for drafter, state in zip((fast, slow), states, strict=True)
        )
        assert found.tokens == wanted.tokens
        assert found.doubt == (wanted.doubt and pytest.approx(wanted.doubt, rel=1e-4))
        assert states[0].watermark == len(TOKENS) - 1


class Picky(toys.ToyDrafter):
    """Leaves out what it has drawn, if it does not like it: against the rule."""

    def propose(
        self, state: DraftState, tokens: Sequence[int], count: int, chooser: Chooser,
        known: Sequence[int] = (), floor: float = 0.0,
    ) -> Proposal:  # fmt: skip
        whole = super().propose(state, tokens, count, chooser, known)
        assert whole.q is not None
        liked = [token == int(q.argmax()) for token, q in zip(whole.tokens, whole.q, strict=True)]
        kept = next((i for i, like in enumerate(liked) if not like), count)
        return Proposal(whole.tokens[:kept], whole.q[:kept])


def test_sampled_output_has_the_law_of_the_target_where_drafts_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Drafts that end at once, later, and not at all."""
    left: Counter[int] = Counter()
    learn, pick = Router.learn, Router.pick
    monkeypatch.setattr(Router, "pick", lambda *told: pick(*told)._replace(floor=0.12))
    monkeypatch.setattr(
        Router, "learn", lambda self, done: (left.update([done.left]), learn(self, done))
    )
    for name in ("ar", "diffusion"):
        assert sampled_p(name, 6) > 0.001
    assert min(left[0], left[1], left[2]) > 100


def test_a_draft_that_leaves_out_what_it_drew_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "ToyDrafter", Picky)
    assert sampled_p("ar", 6) < 1e-5
