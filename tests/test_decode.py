"""The loop keeps its promises: lossless under every arm and router, resumable, bounded."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache

import pytest
import torch
from torch import Tensor

import whiflash_engine.decode as decoding
import whiflash_engine.judge as judging
import whiflash_engine.verify as verification
from tests.toys import (
    TINY,
    Prophet,
    ToyConstraint,
    ToyTarget,
    new_router,
    new_sequence,
    run,
    tiny_drafters,
    tiny_target,
    toy_drafters,
)
from whiflash_engine.config import ArmName, RouterConfig, RouterName, SamplingConfig
from whiflash_engine.decode import decode
from whiflash_engine.drafters.base import Drafter, Proposal
from whiflash_engine.errors import ConfigError, NumericsError, PromptTooLongError
from whiflash_engine.events import Round, Seconds, Stats, tokens_of
from whiflash_engine.kernels.cpu import kernels
from whiflash_engine.offer import offer
from whiflash_engine.router.recent import UNTRIED, Recent
from whiflash_engine.target.native import NativeTarget

ROUTERS: list[RouterName] = ["ar", "diffusion", "retrieval", "random", "entropy", "auto"]


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("seed", range(8))
def test_greedy_output_equals_plain_decoding(name: RouterName, seed: int) -> None:
    target = ToyTarget(9, seed)
    drafters = toy_drafters(target)
    sampling = SamplingConfig(max_tokens=60, repetition_penalty=1.3 if seed % 2 else 1.0)
    plain = run(target, drafters, [1, 2, 3], sampling=sampling, router=RouterConfig("plain"))
    rounds = run(target, drafters, [1, 2, 3], sampling=sampling, router=RouterConfig(name))
    assert tokens_of(rounds) == tokens_of(plain)
    assert len(plain) == 60
    assert name in ("auto", "retrieval") or len(rounds) < 60  # drafts were in fact accepted


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("seed", range(4))
def test_greedy_output_equals_plain_decoding_under_a_grammar(name: RouterName, seed: int) -> None:
    target = ToyTarget(9, seed)
    drafters = toy_drafters(target)
    sampling = SamplingConfig(max_tokens=60)
    rounds = {
        router: run(
            target, drafters, [1, 2, 3], sampling=sampling, router=RouterConfig(router),
            constraint=ToyConstraint(9),
        )
        for router in (name, "plain")
    }  # fmt: skip
    texts = {router: tokens_of(rs) for router, rs in rounds.items()}
    free = tokens_of(run(target, drafters, [1, 2, 3], sampling=sampling, router=RouterConfig(name)))
    assert texts[name] == texts["plain"] != free
    if name not in ("auto", "retrieval"):  # which need not draft: a busy machine, a new text
        assert any(r.verified <= len(r.proposed) for r in rounds[name])  # drafts were cut short
        assert sum(r.accepted for r in rounds[name]) > 10


@pytest.mark.parametrize("name", ["plain", "random"])
def test_logprobs_are_those_of_the_target_whoever_drafts(name: RouterName) -> None:
    target = tiny_target()
    prompt = [5, 6, 7]
    sampling = SamplingConfig(max_tokens=24, temperature=0.7, logprobs=2, seed=4)
    drafters = _prophets(target, prompt, 24)
    rounds = run(target, drafters, prompt, sampling=sampling, router=RouterConfig(name))
    told = [one for r in rounds for one in r.logprobs]
    tokens = tokens_of(rounds)
    assert [one.token for one in told] == tokens
    whole = [*prompt, *tokens]
    output = target.forward(whole, target.new_cache(len(whole)), rows=len(whole))
    expected = output.logits.float().log_softmax(dim=1)[len(prompt) - 1 : -1]
    for one, row in zip(told, expected, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
        assert [token for token, _ in one.top] == row.topk(2).indices.tolist()
        assert one.top[0][1] == pytest.approx(float(row.max()), abs=1e-4)


def test_logprobs_cost_nothing_unless_asked_for() -> None:
    target = ToyTarget(9, seed=1)
    rounds = run(
        target, {}, [1], sampling=SamplingConfig(max_tokens=3), router=RouterConfig("plain")
    )
    assert all(r.logprobs == () for r in rounds)
    with pytest.raises(ConfigError, match="logprobs=-1"):
        SamplingConfig(logprobs=-1)


@cache
def _plain(prompt: tuple[int, ...], count: int, rounded: bool = False) -> list[int]:
    """What the tiny target says."""
    sampling = SamplingConfig(max_tokens=count)
    plain = run(
        tiny_target(rounded=rounded), {}, prompt, sampling=sampling, router=RouterConfig("plain")
    )
    return tokens_of(plain)


def _prophets(
    target: NativeTarget, prompt: list[int], count: int, *, rounded: bool = False
) -> dict[ArmName, Drafter]:
    """Real drafters whose drafts are often right (see `Prophet`)."""
    known = [*prompt, *_plain(tuple(prompt), count, rounded)]
    return {name: Prophet(drafter, known) for name, drafter in tiny_drafters(target).items()}


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("rounded", [False, True])
def test_greedy_output_of_real_networks_equals_plain_decoding(
    name: RouterName, rounded: bool
) -> None:
    if rounded and kernels() is None:
        pytest.skip("there is no C compiler")
    target = tiny_target(rounded=rounded)
    sampling = SamplingConfig(max_tokens=80)
    for prompt in ([5], [1, 2, 3], list(range(40))):
        drafters = _prophets(target, prompt, 80, rounded=rounded)
        rounds = run(target, drafters, prompt, sampling=sampling, router=RouterConfig(name))
        assert tokens_of(rounds) == _plain(tuple(prompt), 80, rounded)
        if name not in ("auto", "retrieval"):
            assert sum(r.accepted for r in rounds) > 0.3 * len(rounds)


def test_what_a_grammar_forces_costs_no_drafter_and_always_passes() -> None:
    target = ToyTarget(9, seed=3)
    drafters = toy_drafters(target)
    rounds = run(
        target, drafters, [1, 2, 3], sampling=SamplingConfig(max_tokens=300, temperature=1.0),
        router=RouterConfig("random", seed=2), constraint=ToyConstraint(9, forcing=True),
    )  # fmt: skip
    forced = [r for r in rounds if r.arm == "forced"]
    assert forced and all(r.accepted == len(r.proposed) == r.forced for r in forced)
    assert all(r.seconds.draft == r.seconds.catch_up == 0 for r in forced)
    drafted = [r for r in rounds if r.arm in ("ar", "diffusion") and r.forced]
    assert drafted and all(r.accepted >= r.forced for r in drafted)
    assert any(len(r.proposed) > r.forced for r in drafted), "drafters go on behind it"
    stats = Stats.of(rounds, prompt_tokens=3, seconds=1.0, time_to_first_token=0.1)
    assert stats.forced == sum(r.forced for r in rounds if r.accepted) > 20


@pytest.mark.parametrize("constrained", [False, True])
def test_the_phases_add_up_to_the_round(monkeypatch: pytest.MonkeyPatch, constrained: bool) -> None:
    """By a clock that moves on by a second whenever somebody looks at it."""
    ticks = itertools.count()
    for module in (decoding, judging):
        monkeypatch.setattr(module, "perf_counter", lambda: float(next(ticks)))
    target = ToyTarget(9, seed=3)
    constraint = ToyConstraint(9) if constrained else None
    rounds = run(
        target, toy_drafters(target), [1, 2, 3], sampling=SamplingConfig(max_tokens=20),
        router=RouterConfig("ar"), constraint=constraint,
    )  # fmt: skip
    masking = 1.0 if constrained else 0.0
    for done in rounds[1:-1]:  # the last ones have no room for a draft
        spent = done.seconds
        assert (spent.mask, spent.verify) == (masking, 1.0 + masking)
        assert (spent.offer, spent.draft, spent.commit) == (1.0, 1.0, 1.0)
        assert spent.pick == 2.0  # and what it learned
        assert spent.total == 7.0 + 2 * masking


def test_a_commit_moves_the_entropy_as_well() -> None:
    target = ToyTarget(9, seed=3)
    sequence = new_sequence(target, {}, [1, 2, 3], 9)
    assert sequence.prefill() and not sequence.prefill()
    assert sequence.entropy == verification.entropy(target.table[1, 2])
    output = target.forward([3], sequence.cache, rows=1)
    sequence.commit([4], output, (), entropy=1.5)
    assert sequence.entropy == 1.5


# ---------------------------------------------------------------- sampled output

_VOCAB, _LENGTH, _DRAWS = 6, 4, 1000


def _exact(
    target: ToyTarget, prompt: list[int], constraint: ToyConstraint | None
) -> dict[tuple[int, ...], float]:
    """Probability of every continuation of length 4; under a constraint, of the target
    masked and renormalised at each token."""
    law: dict[tuple[int, ...], float] = {}
    for text in itertools.product(range(_VOCAB), repeat=_LENGTH):
        every, log_p = [*prompt], 0.0
        for i, token in enumerate(text):
            logits = target.table[every[-2], every[-1]]
            if constraint is not None:
                allowed = constraint.allowed(every[-1] if i else None)
                logits = logits.masked_fill(~allowed, -math.inf)
            log_p += float(logits.log_softmax(-1)[token])
            every.append(token)
        law[text] = math.exp(log_p)
    return law


def _chi_square_p(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """p-value of Pearson's test, cells pooled to an expectation of at least 5.

    The tail of chi-square by Wilson and Hilferty's cube-root approximation.
    """
    total = sum(counts.values())
    cells: list[tuple[float, float]] = []
    pool_seen = pool_expected = 0.0
    for text, p in sorted(law.items(), key=lambda item: -item[1]):
        pool_seen, pool_expected = pool_seen + counts[text], pool_expected + p * total
        if pool_expected >= 5:
            cells.append((pool_seen, pool_expected))
            pool_seen = pool_expected = 0.0
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    k = len(cells) - 1
    z = ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    return 0.5 * math.erfc(z / math.sqrt(2))


def sampled_p(
    name: RouterName, draft_vocab: int, grammar: bool = False, forcing: bool = False
) -> float:
    target = ToyTarget(_VOCAB, seed=4)
    # Drafts that owe the target nothing: most are rejected, and a wrong residual shows soonest.
    drafters = toy_drafters(target, draft_vocab=draft_vocab, blend=0.0)
    router = new_router(RouterConfig(name, seed=1), drafters)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(_DRAWS):
        sampling = SamplingConfig(max_tokens=_LENGTH, temperature=1.0, seed=seed)
        constraint = ToyConstraint(_VOCAB, forcing=forcing) if grammar else None
        rounds = run(
            target, drafters, [2, 3], sampling=sampling, router=router, constraint=constraint
        )
        counts[tuple(tokens_of(rounds))] += 1
    constraint = ToyConstraint(_VOCAB, forcing=forcing) if grammar else None
    return _chi_square_p(counts, _exact(target, [2, 3], constraint))


@pytest.mark.parametrize(
    ("name", "draft_vocab"),
    [("plain", 6), *itertools.product(("ar", "diffusion", "random"), (6, 4))],
)
def test_sampled_output_has_the_law_of_the_target(name: RouterName, draft_vocab: int) -> None:
    assert sampled_p(name, draft_vocab) > 0.001


@pytest.mark.parametrize("forcing", [False, True])
@pytest.mark.parametrize("name", ["ar", "random"])
def test_sampled_output_under_a_grammar_has_the_law_of_the_masked_target(
    name: RouterName, forcing: bool
) -> None:
    assert sampled_p(name, 6, grammar=True, forcing=forcing) > 0.001


def test_a_wrong_residual_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same statistic fails when a rejected draft is replaced from p, not from p - q."""

    def wrong(p: Tensor, proposal: Proposal, row: int) -> Tensor:
        return p

    monkeypatch.setattr(verification, "residual", wrong)
    assert sampled_p("ar", 6) < 1e-6


# ---------------------------------------------------------------- abandoned, stopped, refused


class _Fault(Exception):
    pass


@pytest.mark.parametrize("where", ["forward", "ingest", "propose", "masks", "constrain", "spans"])
def test_a_round_that_breaks_leaves_a_sequence_that_goes_on(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises, after its work was half done: going on gives the same text."""
    target = tiny_target()
    drafters = _prophets(target, [1, 2, 3], 40)
    sampling = SamplingConfig(max_tokens=40)
    plain = run(
        target, {}, [1, 2, 3], sampling=sampling, router=RouterConfig("plain"),
        constraint=ToyConstraint(TINY.vocab_size),
    )  # fmt: skip
    router = new_router(RouterConfig("ar"), drafters)
    sequence = new_sequence(target, drafters, [1, 2, 3], 40, ToyConstraint(TINY.vocab_size))
    owner, name = {
        "forward": (target, "forward"),
        "ingest": (drafters["ar"], "ingest"),
        "propose": (drafters["ar"], "propose"),
        "masks": (sequence.constraint, "masks"),
        "constrain": (sequence.constraint, "commit"),
        "spans": (sequence.spans, "advance"),
    }[where]
    real, calls = getattr(owner, name), itertools.count()

    def faulty(*args: object, **kwargs: object) -> object:
        result = real(*args, **kwargs)
        if next(calls) % 4 == 3:
            raise _Fault
        return result

    monkeypatch.setattr(owner, name, faulty)
    faults = 0
    while sequence.finish_reason is None:
        try:
            for _ in decode(target, drafters, router, sequence, sampling):
                pass
        except _Fault:
            faults += 1
            assert sequence.cache.length == sequence.log.length <= sequence.processed
    assert faults > 2 and sequence.tokens[3:] == tokens_of(plain)


def test_a_cancelled_generator_leaves_a_sequence_that_goes_on() -> None:
    target = tiny_target()
    drafters = _prophets(target, [1, 2, 3], 40)
    sampling = SamplingConfig(max_tokens=40)
    plain = tokens_of(
        run(target, drafters, [1, 2, 3], sampling=sampling, router=RouterConfig("plain"))
    )
    for cancel_after in range(12):
        router = new_router(RouterConfig("random", seed=cancel_after), drafters)
        sequence = new_sequence(target, drafters, [1, 2, 3], 40)
        first = decode(target, drafters, router, sequence, sampling)
        for _ in range(cancel_after):
            next(first)
        first.close()
        assert sequence.cache.length == sequence.log.length <= sequence.processed
        assert all(s.watermark <= sequence.processed for s in sequence.drafts.values())
        list(decode(target, drafters, router, sequence, sampling))
        assert sequence.tokens[3:] == plain


def test_invariants_hold_between_rounds() -> None:
    target = tiny_target()
    drafters = _prophets(target, [1, 2, 3], 60)
    router = new_router(RouterConfig("random", seed=3), drafters)
    sequence = new_sequence(target, drafters, [1, 2, 3], 60)
    for done in decode(target, drafters, router, sequence, SamplingConfig(max_tokens=60)):
        assert sequence.cache.length == sequence.log.length == sequence.processed
        assert all(s.watermark <= sequence.processed for s in sequence.drafts.values())
        assert 1 <= len(done.tokens) <= len(done.proposed) + 1
        if done.arm in sequence.drafts:  # what it proposed with was ingested, nothing more was kept
            assert sequence.drafts[done.arm].watermark == done.position - 1


def test_an_idle_drafter_does_nothing_and_catches_up_in_one_go() -> None:
    target = ToyTarget(9)
    drafters = toy_drafters(target)
    sequence = new_sequence(target, drafters, [1, 2, 3], 50)
    sampling = SamplingConfig(max_tokens=50)
    alone = decode(target, drafters, new_router(RouterConfig("ar"), drafters), sequence, sampling)
    for _ in range(5):
        next(alone)
    alone.close()
    assert sequence.drafts["diffusion"].watermark == 0
    router = new_router(RouterConfig("diffusion"), drafters)
    done = next(decode(target, drafters, router, sequence, sampling))
    assert done.backlog == done.position - 1
    assert done.seconds.catch_up > 0 and done.seconds.prefill < done.seconds.catch_up


@pytest.mark.parametrize("name", ["plain", "ar", "diffusion"])
def test_a_rewound_sequence_decodes_the_same_again(name: RouterName) -> None:
    target = tiny_target()
    drafters = _prophets(target, [1, 2, 3], 30)
    router = new_router(RouterConfig(name), drafters)
    sampling = SamplingConfig(max_tokens=30)
    sequence = new_sequence(target, drafters, [1, 2, 3], 30)
    list(decode(target, drafters, router, sequence, sampling))
    whole = list(sequence.tokens)
    for length in (3, 20, 1):
        sequence.rewind(length)
        assert sequence.cache.length == sequence.log.length <= sequence.processed
        list(decode(target, drafters, router, sequence, sampling))
        assert sequence.tokens == whole or length < 3  # less than the prompt: another text
    with pytest.raises(ConfigError, match="length=99"):
        sequence.rewind(99)


def test_what_a_drafter_got_through_is_the_sequences_own() -> None:
    """It follows the rounds, and begins anew with the text."""
    target = ToyTarget(9)
    drafters = toy_drafters(target)
    sequence = new_sequence(target, drafters, [1, 2, 3], 40)
    router = new_router(RouterConfig("ar"), drafters)
    known, shares = Recent(), []
    for done in decode(target, drafters, router, sequence, SamplingConfig(max_tokens=40)):
        accepted, drafted = done.tried
        known.add(done.arm, accepted + (done.untried or 0.0), drafted + done.left)
        assert sequence.recent.share == known.share
        shares.append(known.share["ar"])
    assert len({*shares}) > 1 and known.share["diffusion"] == UNTRIED["diffusion"]
    assert offer(sequence, drafters, copies=False).recent == known.share
    sequence.settle()
    assert sequence.recent.share == known.share
    sequence.rewind(5)
    assert sequence.recent.share == UNTRIED


@pytest.mark.parametrize(
    ("proposed", "accepted", "forced", "committed", "wanted"),
    [(5, 3, 0, 4, (3, 5)), (5, 5, 0, 6, (5, 5)), (5, 3, 2, 4, (1, 3)), (5, 1, 2, 2, (0, 0)),
     (5, 3, 0, 3, (3, 3)), (0, 0, 0, 1, (0, 0))],
)  # fmt: skip
def test_what_was_tried_of_a_draft(
    proposed: int, accepted: int, forced: int, committed: int, wanted: tuple[int, int]
) -> None:
    """Forced tokens are no trials; a draft that was cut was no longer than what passed."""
    done = Round(
        "ar", 9, (0,) * committed, (0,) * proposed, accepted, proposed + 1, "text", 0.5, 1,
        Seconds(), forced=forced,
    )  # fmt: skip
    assert done.tried == wanted


def test_it_stops_at_the_stop_token_and_at_the_limit() -> None:
    target = ToyTarget(9, seed=5)
    drafters = toy_drafters(target)
    free = tokens_of(
        run(
            target, drafters, [1], sampling=SamplingConfig(max_tokens=50), router=RouterConfig("ar")
        )
    )
    stop = free[20]
    sampling = SamplingConfig(max_tokens=50, stop_token_ids=(stop,))
    rounds = run(target, drafters, [1], sampling=sampling, router=RouterConfig("ar"))
    assert tokens_of(rounds) == free[: free.index(stop) + 1]
    assert [r.finish_reason for r in rounds][-1] == "stop"
    short = run(
        target, drafters, [1], sampling=SamplingConfig(max_tokens=7), router=RouterConfig("ar")
    )
    assert tokens_of(short) == free[:7] and short[-1].finish_reason == "length"


def test_the_context_is_the_last_limit() -> None:
    target = ToyTarget(9, max_positions=20)
    drafters = toy_drafters(target)
    rounds = run(
        target,
        drafters,
        [1] * 15,
        sampling=SamplingConfig(max_tokens=50),
        router=RouterConfig("ar"),
    )
    assert len(tokens_of(rounds)) == 5 and rounds[-1].finish_reason == "length"


def test_bad_prompts_are_refused_before_any_work() -> None:
    target = ToyTarget(9, max_positions=20)
    with pytest.raises(PromptTooLongError, match="21 tokens"):
        new_sequence(target, {}, [1] * 21, 5)
    with pytest.raises(ConfigError, match="at least one token"):
        new_sequence(target, {}, [], 5)
    with pytest.raises(ConfigError, match="prompt=9"):
        new_sequence(target, {}, [1, 9], 5)


def test_logits_that_are_not_finite_are_told_before_anything_is_committed() -> None:
    target = ToyTarget(9)
    drafters = toy_drafters(target)
    target.table[3, 4] = torch.nan
    sequence = new_sequence(target, drafters, [3, 4], 5)
    router = new_router(RouterConfig("ar"), drafters)
    with pytest.raises(NumericsError):
        next(decode(target, drafters, router, sequence, SamplingConfig(max_tokens=5)))
    assert sequence.tokens == [3, 4] and sequence.cache.length == sequence.processed
