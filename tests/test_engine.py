"""The engine around the loop: what it merges, refuses, shares between threads, adds up."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from tests.fake_engine import byte_tokenizer
from tests.toys import TINY, ToyConstraint, tiny_drafters, tiny_target
from whiflash_engine.config import RouterConfig, SamplingConfig, Span
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError
from whiflash_engine.events import Round, Seconds, Stats
from whiflash_engine.target.base import TargetCache, TargetOutput

_SHORT = SamplingConfig(max_tokens=30)


def _engine(stop_token_ids: tuple[int, ...] = ()) -> Engine:
    target = tiny_target()
    return Engine(target, tiny_drafters(target), byte_tokenizer(), stop_token_ids=stop_token_ids)


def test_generate_and_complete_say_the_same() -> None:
    engine = _engine()
    router = RouterConfig("ar")
    rounds = list(engine.generate([1, 2, 3], sampling=_SHORT, router=router))
    done = engine.complete([1, 2, 3], sampling=_SHORT, router=router)
    assert done.tokens == tuple(t for r in rounds for t in r.tokens)
    assert done.finish_reason == "length" and len(done.tokens) == 30
    assert done.stats.tokens == 30 and done.stats.rounds == len(done.rounds)
    assert done.stats.prompt_tokens == 3 and done.stats.time_to_first_token > 0
    assert sum(arm.tokens for arm in done.stats.arms.values()) == 30


def test_the_models_stop_tokens_and_the_callers_both_stop() -> None:
    free = _engine().complete([1, 2, 3], sampling=_SHORT).tokens
    first, later = free[4], next(t for t in free[5:] if t not in free[:5])
    for engine, sampling, stop in (
        (_engine((first,)), _SHORT, first),
        (_engine(), SamplingConfig(max_tokens=30, stop_token_ids=(later,)), later),
    ):
        done = engine.complete([1, 2, 3], sampling=sampling)
        assert done.finish_reason == "stop"
        assert done.tokens == free[: free.index(stop) + 1]


def test_bad_input_is_told_before_any_work() -> None:
    engine = _engine()
    with pytest.raises(ConfigError, match="prompt="):
        engine.generate([])
    with pytest.raises(ConfigError, match=r"2000 tokens.*context holds 1024"):
        engine.generate([1] * 2000)
    for odd in ("a", 1.5, None):
        with pytest.raises(ConfigError, match=rf"prompt={odd!r}: token ids are integers"):
            engine.generate(cast(Sequence[int], [1, odd]))
    target = tiny_target()
    alone = Engine(target, {}, byte_tokenizer(), router=RouterConfig("plain"))
    with pytest.raises(ConfigError, match="router='diffusion'"):
        alone.generate([1], router=RouterConfig("diffusion"))
    with pytest.raises(ConfigError, match="router='ar'"):
        Engine(target, {}, byte_tokenizer(), router=RouterConfig("ar"))
    used = ToyConstraint(TINY.vocab_size)
    used.commit([1])
    with pytest.raises(ConfigError, match="constraint='1 tokens in'"):
        engine.generate([1], constraint=used)


def test_a_fork_is_told_that_it_needs_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for threads that it does not have."""
    engine = _engine()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(ConfigError, match="belongs to the process that loaded it"):
        engine.generate([1, 2, 3])


def test_threads_take_turns_and_get_what_they_would_get_alone() -> None:
    engine = _engine()
    prompts = [[i, i + 1, i + 2] for i in range(8)]
    alone = [engine.complete(p, sampling=_SHORT).tokens for p in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: engine.complete(p, sampling=_SHORT).tokens, prompts))
    assert together == alone


def test_two_streams_in_one_thread_do_not_wait_for_each_other() -> None:
    engine = _engine()
    one, two = (engine.generate([i, 2, 3], sampling=_SHORT) for i in (1, 5))
    rounds = [(next(one), next(two)) for _ in range(5)]
    assert all(a.position >= 3 and b.position >= 3 for a, b in rounds)


def test_what_is_cancelled_before_it_began_takes_nothing_from_what_was_kept() -> None:
    engine, stop = _engine(), threading.Event()
    prompt = list(range(1, 41))
    first = engine.complete(prompt, sampling=_SHORT)
    later = [*prompt, *first.tokens, 7, 8, 9]
    stop.set()
    for cancelled in (prompt[:30], list(range(50, 10, -1))):
        assert list(engine.generate(cancelled, sampling=_SHORT, cancelled=stop)) == []
    again = engine.complete(later, sampling=_SHORT)
    assert again.stats.cached >= len(prompt) + len(first.tokens) - 2
    assert again.tokens == _engine().complete(later, sampling=_SHORT).tokens


def test_a_span_that_does_not_exist_is_told_before_any_work() -> None:
    with pytest.raises(ConfigError, match="span='code'"):
        _engine().generate([1, 2, 3], span=cast(Span, "code"))


def test_a_long_prompt_can_be_cancelled_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what has run of it is kept."""
    monkeypatch.setattr("whiflash_engine.decode.PROMPT_STEP", 8)
    target, prompt, stop = tiny_target(), list(range(1, 61)), threading.Event()
    engine, steps, forward = Engine(target, {}, byte_tokenizer()), list[int](), target.forward

    def cancelling(tokens: Sequence[int], cache: TargetCache, *, rows: int) -> TargetOutput:
        steps.append(len(tokens))
        if len(steps) == 5:
            stop.set()
        return forward(tokens, cache, rows=rows)

    monkeypatch.setattr(target, "forward", cancelling)
    assert list(engine.generate(prompt, sampling=_SHORT, cancelled=stop)) == []
    assert steps == [8] * 5
    again = engine.complete(prompt, sampling=_SHORT)
    assert again.stats.cached == 40 and steps[5:8] == [8, 8, 3]
    monkeypatch.undo()
    fresh = Engine(target, {}, byte_tokenizer()).complete(prompt, sampling=_SHORT)
    assert fresh.tokens == again.tokens


def test_a_sequence_that_waits_for_its_turn_can_be_cancelled() -> None:
    engine, stop, rounds = _engine(), threading.Event(), list[Round]()
    waits, turn = threading.Event(), engine._turn

    class Turn:
        def __enter__(self) -> None:
            waits.set()
            turn.acquire()

        def __exit__(self, *_: object) -> None:
            turn.release()

    engine._turn = cast(threading.Lock, Turn())
    with turn:  # another sequence's round
        waiting = threading.Thread(
            target=lambda: rounds.extend(engine.generate([1, 2, 3], cancelled=stop))
        )
        waiting.start()
        assert waits.wait(10)
        stop.set()
    waiting.join(10)
    assert not waiting.is_alive() and not rounds


def test_a_seed_does_not_make_a_router_forget() -> None:
    engine = _engine()
    assert engine.router(RouterConfig("auto", seed=1)) is engine.router(RouterConfig("auto"))
    assert engine.router(RouterConfig("random", seed=1)) is not engine.router(
        RouterConfig("random", seed=2)
    )


def _round(tokens: int, *, seconds: Seconds, backlog: int = 1) -> Round:
    return Round(
        "ar", 9, (0,) * tokens, (0,) * 5, tokens - 1, 6, "text", 0.0, backlog, seconds
    )  # fmt: skip


def test_the_first_round_counts_neither_with_its_tokens_nor_with_its_time() -> None:
    """6 tokens came with the prompt's pass; 2 tokens in 0.02 s are 100 a second."""
    rounds = [
        _round(6, seconds=Seconds(prefill=0.9, verify=0.1)),
        _round(2, seconds=Seconds(catch_up=0.005, verify=0.015), backlog=40),
    ]
    stats = Stats.of(rounds, prompt_tokens=50, seconds=1.02, time_to_first_token=1.0)
    assert stats.tokens_per_second == pytest.approx(100)
    assert stats.acceptance_length == 4
    assert stats.arms["ar"].seconds == pytest.approx(0.12)  # without the prompt's pass
    assert (stats.switches, stats.caught_up) == (1, 40)
    assert stats.switch_seconds == pytest.approx(0.005)
    once = Stats.of(rounds[:1], prompt_tokens=50, seconds=1.0, time_to_first_token=1.0)
    assert once.tokens_per_second == 0.0
