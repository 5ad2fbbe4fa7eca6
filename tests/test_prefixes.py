"""A prompt that begins like an earlier sequence is not run again, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from tests.fake_engine import byte_tokenizer
from tests.toys import ToyTarget, new_sequence, tiny_drafters, tiny_target, toy_drafters
from whiflash_engine.cache import KVCache
from whiflash_engine.config import RouterConfig, RouterName, SamplingConfig
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError
from whiflash_engine.lookup import common
from whiflash_engine.prefixes import PrefixStore
from whiflash_engine.sequence import SequenceState

SHORT = SamplingConfig(max_tokens=24)


def engine(reuse_bytes: int = 1 << 30) -> Engine:
    target = tiny_target()
    return Engine(target, tiny_drafters(target), byte_tokenizer(), reuse_bytes=reuse_bytes)


def turns(prompt: Sequence[int], answer: Sequence[int]) -> list[list[int]]:
    """Prompts of later turns: the same beginning, cut or gone on with at several places."""
    whole = [*prompt, *answer]
    return [
        [*whole, 3, 4, 5],
        whole,
        [*whole[:-5], 7, 7, 7],
        [*whole, *range(1, 60), *range(1, 60)],
        whole[: len(prompt)],
        [*prompt[:-1], 9],
    ]


@pytest.mark.parametrize("router", ["plain", "ar", "diffusion", "random"])
def test_later_turns_say_what_a_fresh_engine_says(router: RouterName) -> None:
    config, prompt = RouterConfig(router), list(range(1, 41))
    answer = engine().complete(prompt, sampling=SHORT, router=config).tokens
    for later in turns(prompt, answer):
        reusing = engine()
        assert reusing.complete(prompt, sampling=SHORT, router=config).stats.cached == 0
        again = reusing.complete(later, sampling=SHORT, router=config)
        fresh = engine(0).complete(later, sampling=SHORT, router=config)
        assert again.tokens == fresh.tokens
        assert fresh.stats.cached == 0
        assert again.stats.cached >= len(prompt) - 2
        assert again.stats.prompt_tokens == len(later)


def test_sampled_text_is_the_same_with_a_kept_prefix() -> None:
    sampling = SamplingConfig(max_tokens=24, temperature=1.0, seed=5)
    reusing, prompt, config = engine(), list(range(1, 41)), RouterConfig("ar")
    first = reusing.complete(prompt, sampling=sampling, router=config)
    later = [*prompt, *first.tokens, 8, 9]
    again = reusing.complete(later, sampling=sampling, router=config)
    assert again.tokens == engine(0).complete(later, sampling=sampling, router=config).tokens
    assert again.stats.cached > len(prompt)


def test_a_generator_that_was_dropped_leaves_a_prefix_that_can_be_used() -> None:
    reusing, prompt = engine(), list(range(1, 41))
    rounds = reusing.generate(prompt, sampling=SHORT, router=RouterConfig("random"))
    got = [*next(rounds).tokens, *next(rounds).tokens]
    del rounds
    later = [*prompt, *got, 6, 6]
    again = reusing.complete(later, sampling=SHORT, router=RouterConfig("random"))
    fresh = engine(0).complete(later, sampling=SHORT, router=RouterConfig("random"))
    assert again.tokens == fresh.tokens and again.stats.cached > len(prompt)


def test_a_sequence_at_work_is_nobody_elses() -> None:
    reusing, prompt = engine(), list(range(1, 41))
    reusing.complete(prompt, sampling=SHORT)
    one = reusing.generate([*prompt, 1], sampling=SHORT)
    two = reusing.generate([*prompt, 2], sampling=SHORT)
    cached = next(one).cached, next(two).cached
    assert cached[0] > 0 and cached[1] == 0


def test_bad_input_takes_nothing_out_of_the_store() -> None:
    reusing, prompt = engine(), list(range(1, 41))
    reusing.complete(prompt, sampling=SHORT)
    with pytest.raises(ConfigError, match="prompt"):
        reusing.generate([*prompt, 10**9])
    reusing.generate([*prompt, 1], sampling=SHORT)  # never begun
    assert reusing.complete([*prompt, 1], sampling=SHORT).stats.cached > 0


def sequence(tokens: list[int]) -> SequenceState:
    target = ToyTarget(50)
    made = new_sequence(target, toy_drafters(target), tokens, 10)
    made.prefill()
    return made


def test_the_longest_prefix_wins_and_another_conversation_is_left_alone() -> None:
    store = PrefixStore(1 << 30)
    short, long = sequence(list(range(20))), sequence(list(range(30)))
    store.give(short)
    store.give(long)
    assert store.take(list(range(28))) is long
    assert store.take(list(range(5))) is None, "too little"
    assert store.take(list(range(28))) is short
    assert store.take(list(range(28))) is None, "taken"
    store.give(sequence([*range(20), *[1] * 40]))
    assert store.take(list(range(28))) is None, "most of it is another conversation's"


def test_the_least_recently_used_goes_first_and_zero_keeps_nothing() -> None:
    one, two = sequence([1] * 20), sequence([2] * 20)
    store = PrefixStore(one.nbytes + two.nbytes - 1)
    store.give(one)
    store.give(two)
    assert store.take([1] * 20) is None and store.take([2] * 20) is two
    nothing = PrefixStore(0)
    nothing.give(one)
    assert nothing.take([1] * 20) is None
    with pytest.raises(ConfigError, match="reuse_bytes=-1"):
        PrefixStore(-1)


def test_one_that_is_too_large_puts_nobody_out() -> None:
    small = sequence([1] * 20)
    store = PrefixStore(small.nbytes)
    store.give(small)
    large = sequence([2] * 200)
    assert large.nbytes > small.nbytes
    store.give(large)
    assert store.take([1] * 20) is small


def test_a_sequence_may_be_given_back_inside_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector closes abandoned generators wherever it runs."""
    store, waiting = PrefixStore(1 << 30), [sequence([2] * 20)]
    store.give(sequence([1] * 20))

    def collecting(a: Sequence[int], b: Sequence[int]) -> int:
        while waiting:
            store.give(waiting.pop())
        return common(a, b)

    monkeypatch.setattr("whiflash_engine.prefixes.common", collecting)
    found: list[SequenceState | None] = []
    thread = threading.Thread(target=lambda: found.append(store.take([1] * 20)), daemon=True)
    thread.start()
    thread.join(10)
    assert found and found[0] is not None and found[0].tokens == [1] * 20
    again = store.take([2] * 20)
    assert again is not None and again.tokens == [2] * 20


def test_room_that_an_answer_did_not_need_is_not_counted() -> None:
    target, prompt = tiny_target(), list(range(1, 41))
    short, long = (new_sequence(target, {}, prompt, most) for most in (8, 300))
    for one in (short, long):
        one.prefill()
    assert short.nbytes == long.nbytes


def test_what_was_never_run_is_not_kept() -> None:
    target, prompt = tiny_target(), list(range(1, 41))
    store = PrefixStore(1 << 30)
    store.give(new_sequence(target, {}, prompt, 8))
    assert store.take(prompt) is None
    sequence = new_sequence(target, {}, prompt, 8)
    sequence.prefill()
    later = [*prompt, *range(1, 41)]
    sequence.restart(later, max_tokens=8, spans=sequence.spans)  # cancelled before it is run
    store.give(sequence)
    kept = store.take(later)
    assert kept is sequence and len(kept.tokens) == kept.cache.length + 1 <= len(prompt)


def test_common_beginnings() -> None:
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([1, 2], [1, 2, 4]) == 2 and common([], [1]) == 0


def test_a_cache_grows_and_keeps_what_it_holds() -> None:
    cache = KVCache(2, 1, 4, 3, torch.float32, torch.device("cpu"))
    rows = torch.randn(3, 1, 4)
    for layer in range(2):
        cache.write(layer, rows, -rows)
    cache.advance(3)
    cache.reserve(20)
    assert cache.capacity >= 23
    keys, values = cache.places(0)[1][2:]
    assert torch.equal(keys[0, 0], rows[:, 0]) and torch.equal(values, -keys)
