"""Warping against a naive reference and against transformers; the random stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.toys import warp
from whiflash_engine.config import SamplingConfig
from whiflash_engine.errors import ConfigError, NumericsError
from whiflash_engine.law import distribution, draw
from whiflash_engine.sampling import Sampler, argmax, penalise, uniform

VOCAB = 12

configs = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, VOCAB + 3),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
)
token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=6)
seeds = st.integers(0, 2**31)


def _logits(rows: int, seed: int, vocab: int = VOCAB) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def _naive(row: list[float], config: SamplingConfig, seen: list[int]) -> tuple[list[float], float]:
    """One row, straight from the definitions; and how near an edge any decision was."""
    x = list(row)
    for token in set(seen):
        penalty = config.repetition_penalty
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    kept = sorted(range(len(x)), key=lambda i: -x[i])
    if config.top_k:
        kept = kept[: config.top_k]
    peak = max(x)
    p = {i: math.exp((x[i] - peak) / config.temperature) for i in kept}
    p = {i: w / sum(p.values()) for i, w in p.items()}
    slack = 1.0
    if config.top_p < 1:
        mass = 0.0
        nucleus: list[int] = []
        for i in kept:
            slack = min(slack, abs(mass - config.top_p))
            if nucleus and mass >= config.top_p:
                break
            nucleus.append(i)
            mass += p[i]
        kept = nucleus
    edge = config.min_p * p[kept[0]]
    slack = min([slack, *(abs(p[i] - edge) for i in kept if edge)])
    kept = [i for i in kept if p[i] >= edge]
    total = sum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(x))], slack


def _rounding(row: list[float], config: SamplingConfig) -> float:
    """What float32 may get wrong in a probability: a few roundings of a penalised logit, which
    a small temperature multiplies before the exponential turns them into relative errors."""
    penalty = config.repetition_penalty
    largest = max(abs(x) for x in row) * max(penalty, 1 / penalty)
    return 1e-6 + 4 * 2.0**-24 * largest / config.temperature


@given(config=configs, seed=seeds, seen=token_lists, draft=token_lists)
@settings(max_examples=300)
def test_warp_is_the_naive_reference_at_every_draft_position(
    config: SamplingConfig, seed: int, seen: list[int], draft: list[int]
) -> None:
    logits = _logits(len(draft) + 1, seed)
    got = warp(logits, config, seen, draft)
    for i, row in enumerate(logits.tolist()):
        want, slack = _naive(row, config, seen + draft[:i])
        error = _rounding(row, config)
        if slack > error:  # nearer than that, float32 may decide otherwise
            assert got[i].tolist() == pytest.approx(want, abs=error)


@given(config=configs, seed=seeds, seen=token_lists)
@settings(max_examples=100)
def test_warp_is_what_transformers_does(config: SamplingConfig, seed: int, seen: list[int]) -> None:
    logits = _logits(1, seed)
    error = _rounding(logits[0].tolist(), config)
    if _naive(logits[0].tolist(), config, seen)[1] < 2 * error:
        return
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    chain.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        chain.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        chain.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        chain.append(MinPLogitsWarper(config.min_p))
    ids = torch.LongTensor([seen or [0]])
    want = chain(ids, logits.clone()).softmax(-1)
    torch.testing.assert_close(warp(logits, config, seen or [0]), want, atol=2 * error, rtol=0)


@pytest.mark.parametrize("scale", [0.01, 8.0])
def test_top_p_over_a_large_vocabulary(scale: float) -> None:
    """Flat rows need the full sort, peaked ones do not; one batch may hold both."""
    logits = torch.cat([_logits(1, 1, 3000) * scale, _logits(1, 2, 3000) * 8.0])
    config = SamplingConfig(temperature=1.0, top_p=0.9)
    got = warp(logits, config)
    for row, probs in zip(logits.tolist(), got, strict=True):
        want, slack = _naive(row, config, [])
        assert slack > 1e-7
        assert int((probs > 0).sum()) == sum(p > 0 for p in want)
        assert probs.tolist() == pytest.approx(want, abs=1e-5)


def test_ties_at_an_edge_all_stay() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for config in (
        SamplingConfig(temperature=1.0, top_k=2),
        SamplingConfig(temperature=1.0, top_p=0.5),
    ):
        assert (warp(logits, config) > 0).tolist() == [[True, True, True, True, False]]


def test_a_tiny_temperature_neither_overflows_nor_loses_the_peak() -> None:
    probs = warp(_logits(2, 3) * 100, SamplingConfig(temperature=1e-8, top_k=5, min_p=0.1))
    assert probs.sum(1).tolist() == [1.0, 1.0] and probs.amax(1).tolist() == [1.0, 1.0]


def test_what_float32_would_make_zero_of_is_greedy() -> None:
    assert SamplingConfig(temperature=1e-46).greedy and not SamplingConfig(temperature=1e-8).greedy
    logits = _logits(1, 9)
    config = SamplingConfig(temperature=1e-46)
    assert Sampler(config).choose(logits, 0, 0) == ([int(logits.argmax())], None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 1.5),
        ("top_k", 2.5),
        ("seed", "x"),
        ("temperature", "1"),
        ("max_tokens", True),
    ],
)
def test_values_of_another_type_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value!r}"):
        SamplingConfig(**{field: value})  # type: ignore[arg-type]


def test_penalty_off_copies_nothing_and_on_leaves_the_input_alone() -> None:
    logits = _logits(2, 4)
    before = logits.clone()
    assert penalise(logits, 1.0, [1, 2]) is logits
    assert not torch.equal(penalise(logits, 1.5, [1, 2], [3]), before)
    assert torch.equal(logits, before)


def test_argmax_takes_the_first_among_equals() -> None:
    rows = torch.tensor([[0.0, 5.0, 5.0], [-math.inf, -3.0, -math.inf]])
    assert argmax(rows) == [1, 1] == rows.double().argmax(1).tolist()


def test_the_stream_is_known_and_even() -> None:
    # Written down once: the same seed must give the same text in every release.
    assert uniform(0, 0, "sample") == 0.6493586340438232
    numbers = [uniform(s, p, w) for s in range(20) for p in range(50) for w in ("draft", "accept")]
    assert len(set(numbers)) == len(numbers) and min(numbers) >= 0 and max(numbers) < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert float(((counts - 100) ** 2 / 100).sum()) < 43.8  # chi-square, 19 df, p = 0.001


@given(weights=st.lists(st.sampled_from([0.0, 1e-30, 0.3, 1.0, 7.0]), min_size=1, max_size=9))
def test_draw_inverts_the_cdf_and_never_returns_weight_zero(weights: list[float]) -> None:
    w = torch.tensor(weights)
    if not sum(weights):
        with pytest.raises(NumericsError):
            draw(w, 0.5)
        return
    for number in (0.0, 0.25, 0.5, 1 - 2.0**-53):
        index = draw(w, number)
        assert weights[index] > 0
        below = float(w[:index].double().sum()) / float(w.double().sum())
        assert below <= number + 1e-12


def test_choose_draws_from_the_distribution_it_reports() -> None:
    config = SamplingConfig(temperature=0.8, top_k=4, repetition_penalty=2.0, seed=7)
    sampler = Sampler(config)
    logits = _logits(1, 5)
    counts = [0] * VOCAB
    for position in range(3000):
        (token,), q = sampler.choose(logits, position, 0)
        counts[token] += 1
    assert q is not None and int((q > 0).sum()) == 4
    expected = (q[0] * 3000).tolist()
    terms = [(c - e) ** 2 / e for c, e in zip(counts, expected, strict=True) if e > 0]
    assert all(c == 0 for c, e in zip(counts, expected, strict=True) if e == 0)
    assert sum(terms) < 16.3  # chi-square, 3 df, p = 0.001
    again = Sampler(config)
    assert [sampler.choose(logits, p, 0)[0] for p in range(20)] == [
        again.choose(logits, p, 0)[0] for p in range(20)
    ]


def test_choose_greedy_is_argmax_without_a_distribution() -> None:
    logits = _logits(3, 6)
    assert Sampler(SamplingConfig()).choose(logits, 3, 0) == (logits.argmax(1).tolist(), None)


def test_rows_are_drawn_as_if_each_were_chosen_by_itself() -> None:
    logits = _logits(7, 8)
    sampler = Sampler(SamplingConfig(temperature=1.5, top_p=0.9, seed=3))
    tokens, q = sampler.choose(logits, 40, 40)
    assert q is not None and len({*tokens}) > 1
    alone = [sampler.choose(row[None], 40 + i, 40) for i, row in enumerate(logits)]
    assert tokens == [token for (token,), _ in alone]
    for row, (_, own) in zip(q, alone, strict=True):
        assert own is not None and torch.equal(row, own[0])


@pytest.mark.parametrize(
    "options", [{"top_p": 0.9}, {"top_k": 40}, {"top_k": 40, "top_p": 0.5}, {"min_p": 0.1}]
)
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_the_way_for_processors_and_the_one_for_the_rest_agree(
    options: dict[str, float], scale: float
) -> None:
    """In float64 torch does what numpy does in float32."""
    logits = _logits(2, 6, 3000) * scale
    config = SamplingConfig(temperature=0.8, **options)  # type: ignore[arg-type]
    fast, plain = distribution(logits, config), distribution(logits.double(), config)
    assert torch.equal(fast > 0, plain > 0) and fast.dtype is torch.float32
    torch.testing.assert_close(fast, plain.float())
