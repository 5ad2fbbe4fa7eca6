"""Verification: greedy against a naive loop, sampled against the law it must have."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.toys import warp
from whiflash_engine import verify as module
from whiflash_engine.config import SamplingConfig
from whiflash_engine.drafters.base import Proposal
from whiflash_engine.errors import NumericsError
from whiflash_engine.law import draw, residual
from whiflash_engine.sampling import Sampler, penalise
from whiflash_engine.verify import Outcome, entropy, verify

VOCAB = 6
GREEDY = Sampler(SamplingConfig())


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1.5


def _masks(rows: int, seed: int, vocab: int = VOCAB) -> Tensor:
    """Random, with at least one token allowed in every row."""
    masks = _randn(rows, vocab, seed=seed) > 0
    masks[torch.arange(rows), torch.arange(rows) % vocab] = True
    return masks


# ---------------------------------------------------------------- greedy


def _naive(
    draft: list[int], logits: Tensor, penalty: float, seen: list[int], masks: Tensor
) -> Outcome:
    committed: list[int] = []
    for i, row in enumerate(logits):
        scores = penalise(row[None], penalty, seen + draft[:i])[0].tolist()
        best = max((s, -t) for t, s in enumerate(scores) if masks[i, t])
        committed.append(-best[1])
        if i == len(draft) or committed[-1] != draft[i]:
            break
    last = logits[len(committed) - 1].double().log_softmax(0)
    return Outcome(len(committed) - 1, tuple(committed), -float((last.exp() * last).sum()))


@given(
    seed=st.integers(0, 2**31), length=st.integers(0, 5), luck=st.integers(0, 5),
    penalty=st.sampled_from([1.0, 1.4]), seen=st.lists(st.integers(0, VOCAB - 1), max_size=4),
    masked=st.booleans(),
)  # fmt: skip
@settings(max_examples=300)
def test_greedy_is_the_naive_loop(
    seed: int, length: int, luck: int, penalty: float, seen: list[int], masked: bool
) -> None:
    logits = _randn(length + 1, VOCAB, seed=seed)
    masks = _masks(length + 1, seed + 1) if masked else torch.ones(length + 1, VOCAB).bool()
    draft: list[int] = []
    for i in range(length):  # a drafter that is right for `luck` tokens, then random
        right = _naive(draft, logits[: i + 1], penalty, seen, masks).tokens[-1]
        draft.append(right if i < luck else (seed >> i) % VOCAB)
    want = _naive(draft, logits, penalty, seen, masks)
    got = verify(
        Proposal(tuple(draft)), logits, Sampler(SamplingConfig(repetition_penalty=penalty)),
        seen=seen, position=9, masks=masks if masked else None,
    )  # fmt: skip
    assert (got.accepted, got.tokens) == (want.accepted, want.tokens)
    assert got.entropy == pytest.approx(want.entropy, abs=1e-5)
    assert got.accepted >= min(luck, length)


def test_a_draft_that_ends_in_a_forbidden_token_needs_no_row_after_it() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, 3] = logits[1, 4] = 5.0
    masks = torch.ones(2, VOCAB).bool()
    masks[1, 4] = False
    got = verify(Proposal((3, 4, 5)), logits, GREEDY, seen=[0], position=1, masks=masks)
    assert (got.accepted, got.tokens) == (1, (3, 0))
    with pytest.raises(ValueError, match="logits after it"):
        verify(Proposal((3, 4, 5)), logits, GREEDY, seen=[0], position=1)
    with pytest.raises(ValueError, match="rows"):
        verify(Proposal(()), logits, GREEDY, seen=[0], position=1)


# ---------------------------------------------------------------- entropy and numbers


def test_entropy_is_that_of_the_raw_bonus_row() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, 2] = 100.0
    config = SamplingConfig(temperature=0.3, top_k=1)
    masks = torch.zeros(2, VOCAB).bool()
    masks[:, 2] = True
    got = verify(Proposal((2,)), logits, Sampler(config), seen=[0], position=1, masks=masks)
    assert got.tokens == (2, 2)
    assert got.entropy == pytest.approx(math.log(VOCAB), abs=1e-6)
    assert verify(Proposal((1,)), logits, GREEDY, seen=[0], position=1).entropy < 1e-30
    assert entropy(torch.tensor([1.0, -math.inf, 1.0])) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "row"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("row", [0, 2])
def test_logits_that_are_not_finite_are_refused(
    bad: float | str, temperature: float, row: int
) -> None:
    """In any row, also in one that the draft does not reach; a lone -inf is fine."""
    logits = _randn(3, VOCAB, seed=1)
    logits[:, 1] = -math.inf
    sampler = Sampler(SamplingConfig(temperature=temperature))
    proposal = Proposal((int(logits[0].argmin()), 0))
    verify(proposal, logits, sampler, seen=[0], position=1)
    logits[row, slice(None) if bad == "row" else 3] = -math.inf if bad == "row" else float(bad)
    with pytest.raises(NumericsError):
        verify(proposal, logits, sampler, seen=[0], position=1)


def test_what_a_penalty_touches_is_refused_as_well() -> None:
    logits = _randn(1, VOCAB, seed=1)
    logits[0, 3] = math.nan
    sampler = Sampler(SamplingConfig(repetition_penalty=1.4))
    with pytest.raises(NumericsError):
        verify(Proposal(()), logits, sampler, seen=[3], position=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masks_that_leave_nothing_are_refused(temperature: float) -> None:
    sampler = Sampler(SamplingConfig(temperature=temperature))
    with pytest.raises(NumericsError):
        verify(
            Proposal(()), _randn(1, VOCAB, seed=2), sampler, seen=[0], position=1,
            masks=torch.zeros(1, VOCAB).bool(),
        )  # fmt: skip


# ---------------------------------------------------------------- sampled

DRAWS = 2000
CONFIGS = {
    "plain": SamplingConfig(temperature=1.0),
    "warped": SamplingConfig(temperature=0.8, top_k=5, top_p=0.97, min_p=0.02),
    "penalised": SamplingConfig(temperature=1.3, repetition_penalty=1.7),
}
KINDS = ("one-hot", "full", "reduced", "exact")
PROMPT = (2, 5)


class Toy:
    """A target with a table per position, and a drafter that proposes two tokens.

    kind: `one-hot` proposes the likeliest tokens; `full` draws from a table of its own; `reduced`
    knows only tokens 0..2, scattered; `exact` draws from p itself: residuals are empty.
    """

    def __init__(self, kind: str, config: SamplingConfig, masked: bool) -> None:
        self.kind, self.config = kind, config
        self.tables, self.guesses = _randn(2, 3, VOCAB, VOCAB, seed=3)
        self.masks = torch.ones(3, VOCAB).bool()
        if masked:  # what the drafter likes best at first, and two tokens later on
            self.masks[0, int(self.guesses[0, PROMPT[-1]].argmax())] = False
            self.masks[1:, [0, 4]] = False

    def p(self, row: int, seen: tuple[int, ...]) -> Tensor:
        logits = self.tables[row, seen[-1]].masked_fill(~self.masks[row], -math.inf)
        return warp(logits[None], self.config, seen)[0]

    def law(self) -> dict[tuple[int, ...], float]:
        """Exact probability of every pair of tokens."""
        return {
            (a, b): float(self.p(0, PROMPT)[a]) * float(self.p(1, (*PROMPT, a))[b])
            for a, b in itertools.product(range(VOCAB), repeat=2)
        }

    def propose(self, sampler: Sampler) -> Proposal:
        if self.kind == "one-hot":
            first = int(self.p(0, PROMPT).argmax())
            return Proposal((first, int(self.p(1, (*PROMPT, first)).argmax())))
        tokens: tuple[int, ...] = PROMPT
        rows: list[Tensor] = []
        for row in range(2):
            position = len(tokens)
            if self.kind == "exact":
                q = self.p(row, tokens)
                token = draw(q, sampler.uniform(position, f"draft from {len(PROMPT)}"))
            else:
                size = 3 if self.kind == "reduced" else VOCAB
                guesses = self.guesses[row, tokens[-1], :size]
                (token,), chosen = sampler.choose(guesses[None], position, len(PROMPT))
                assert chosen is not None
                q = torch.cat([chosen[0], torch.zeros(VOCAB - size)])
            tokens, rows = (*tokens, token), [*rows, q]
        return Proposal(tokens[2:], torch.stack(rows))

    def pair(self, seed: int, trim: bool = False) -> tuple[int, ...]:
        """Two tokens: a round, and where it commits only one, the next token alone."""
        sampler = Sampler(replace(self.config, seed=seed))
        proposal = self.propose(sampler)
        legal = 0
        while legal < 2 and self.masks[legal, proposal.tokens[legal]]:
            legal += 1
        if trim and proposal.q is not None:
            proposal = Proposal(proposal.tokens[:legal], proposal.q[:legal])
        got = self._verified(proposal, PROMPT, legal + 1, sampler)
        if len(got) == 1:
            got += self._verified(Proposal(()), PROMPT + got, 1, sampler)
        return got[:2]

    def _verified(
        self, proposal: Proposal, seen: tuple[int, ...], rows: int, sampler: Sampler
    ) -> tuple[int, ...]:
        first = len(seen) - len(PROMPT)
        every = seen + proposal.tokens
        logits = torch.stack(
            [self.tables[first + i, every[len(seen) + i - 1]] for i in range(rows)]
        )
        return verify(
            proposal, logits, sampler, seen=seen, position=len(seen),
            masks=self.masks[first : first + rows],
        ).tokens  # fmt: skip


def _p_value(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-square; cells that expect fewer than five are pooled; the tail by Wilson
    and Hilferty (1931)."""
    total = sum(counts.values())
    cells: list[tuple[float, float]] = []
    rare = [0.0, 0.0]
    for pair, p in law.items():
        assert p > 0 or not counts[pair], f"{pair} is impossible"
        if p * total >= 5:
            cells.append((counts[pair], p * total))
        else:
            rare = [rare[0] + counts[pair], rare[1] + p * total]
    if rare[1] >= 5:
        cells.append((rare[0], rare[1]))
    df = len(cells) - 1
    x = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    z = ((x / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    return math.erfc(z / math.sqrt(2)) / 2


def _measured(toy: Toy, trim: bool = False) -> float:
    return _p_value(Counter(toy.pair(seed, trim) for seed in range(DRAWS)), toy.law())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("kind", "config"),
    [*((kind, "plain") for kind in KINDS), ("full", "warped"), ("reduced", "penalised")],
)
def test_sampled_output_has_the_law_of_the_target(kind: str, config: str, masked: bool) -> None:
    assert _measured(Toy(kind, CONFIGS[config], masked)) > 0.001


@pytest.mark.parametrize("kind", ["one-hot", "full", "reduced"])
def test_a_wrong_residual_is_found_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing from p after a rejection, which forgets that q has had its turn."""
    monkeypatch.setattr(module, "residual", lambda p, token, q: p)
    assert _measured(Toy(kind, CONFIGS["plain"], masked=False)) < 1e-6


def test_cutting_a_forbidden_draft_token_off_is_found_out() -> None:
    """The trap that the module's docstring names."""
    assert _measured(Toy("full", CONFIGS["plain"], masked=True), trim=True) < 1e-3


def test_a_perfect_drafter_is_always_accepted() -> None:
    toy = Toy("exact", CONFIGS["plain"], masked=False)
    for seed in range(300):
        sampler = Sampler(replace(toy.config, seed=seed))
        proposal = toy.propose(sampler)
        every = PROMPT + proposal.tokens
        logits = torch.stack([toy.tables[i, every[1 + i]] for i in range(3)])
        assert verify(proposal, logits, sampler, seen=PROMPT, position=2).accepted == 2


def test_an_empty_residual_falls_back_to_p() -> None:
    p = torch.tensor([0.5, 0.5, 0.0])
    assert torch.equal(residual(p, 0, p), p)
    assert residual(p, 0, None).tolist() == [0.0, 0.5, 0.0]
