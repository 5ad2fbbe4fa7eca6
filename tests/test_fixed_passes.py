"""Passes of fixed shape are the ordinary ones, here without a GPU that records them."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from tests import toys
from tests.fixed_toys import (
    TOKENS,
    Pair,
    Recorder,
    check_boundary,
    check_drafters,
    check_turns,
    check_widths_and_crops,
)
from tests.toys import tiny_drafters, tiny_target
from whiflash_engine import stage
from whiflash_engine.cache import KVCache
from whiflash_engine.config import RopeConfig, RouterConfig, SamplingConfig
from whiflash_engine.graphs import FixedWork, graph_capture
from whiflash_engine.layers import Sight
from whiflash_engine.stage import Stage
from whiflash_engine.target.native import NativeTarget

CPU = torch.device("cpu")


def targets(capture: Recorder | None = None) -> tuple[NativeTarget, NativeTarget]:
    return tiny_target(capture=capture or Recorder()), tiny_target()


@pytest.mark.parametrize("window", [None, 20])
def test_all_widths_and_crops(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "TINY", replace(toys.TINY, sliding_window=window))
    recorder = Recorder()
    check_widths_and_crops(*targets(recorder))
    assert recorder.recorded == 2


@pytest.mark.parametrize(("room", "recorded"), [(2048, 2), (512, 3)])
def test_a_bucket_s_boundary_and_long_passes_between(
    room: int, recorded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that has to grow is recorded anew."""
    monkeypatch.setattr(stage, "_ROOM", room)
    recorder = Recorder()
    check_boundary(*targets(recorder))
    assert recorder.recorded == recorded


def test_sequences_take_turns() -> None:
    check_turns(*targets())


def test_drafters(exact: None) -> None:
    recorder = Recorder()
    check_drafters(tiny_target(), recorder)
    assert recorder.recorded == 6  # one slot, 16, a block; each for two buckets of keys


def test_a_window_and_a_causal_layer_of_a_block() -> None:
    sights = [(c, w) for c in (True, False) for w in (None, 3, 9, 40)]
    places = torch.arange(20, 25)
    for causal, window in sights:
        sight, like = Sight(causal, window), torch.zeros(1)
        mask = sight.mask(5, 25, 2, like)
        there = sight.mask_at(places, 32, 2, like)
        assert there.shape == (10, 32) and there[:, 25:].isinf().all()
        assert torch.equal(there[:, :25], torch.zeros(10, 25) if mask is None else mask)


def test_outputs_outlive_the_next_pass() -> None:
    target = targets()[0]
    cache = target.new_cache(64)
    first = target.forward([1, 2, 3], cache, rows=2)
    parts = first.logits, first.features, first.hidden
    kept = [part.clone() for part in parts]
    target.forward([9, 8, 7], cache, rows=3)
    assert all(torch.equal(*both) for both in zip(kept, parts, strict=True))


def test_decoding_is_the_same_whoever_drafts() -> None:
    fixed, plain = targets()
    for sampling in (SamplingConfig(max_tokens=60), SamplingConfig(max_tokens=60, temperature=0.9)):
        for name in ("plain", "random"):
            texts = [
                [r.tokens for r in toys.run(
                    target, tiny_drafters(target, capture), TOKENS[:40], sampling=sampling,
                    router=RouterConfig(name),
                )]
                for target, capture in ((fixed, Recorder()), (plain, None))
            ]  # fmt: skip
            assert texts[0] == texts[1]


def test_numbers_of_one_sequence_do_not_reach_another() -> None:
    fixed, plain = targets()
    bad = fixed.new_cache(400)
    fixed.forward(TOKENS[:300], bad, rows=1)
    bad.span(0, 300).fill_(float("nan"))
    assert fixed.forward([1], bad, rows=1).logits.isnan().all()
    pair = Pair(fixed, plain)
    pair.run(TOKENS[:10], rows=2)
    pair.run(TOKENS[:10], rows=2)


def test_a_pass_that_breaks_off_leaves_the_sequence_as_it_was() -> None:
    class Broken(Recorder):
        def __call__(self, work: FixedWork) -> FixedWork:
            if not self.recorded:
                self.recorded = 1
                raise RuntimeError("no graph")
            return super().__call__(work)

    fixed, plain = targets(Broken())
    cache = fixed.new_cache(8)
    with pytest.raises(RuntimeError, match="no graph"):
        fixed.forward(TOKENS[:8], cache, rows=1)
    assert cache.length == 0
    Pair(fixed, plain).run(TOKENS[:8], rows=1)


def test_target_and_caches_go_when_nobody_holds_them() -> None:
    target = targets()[0]
    drafters = tiny_drafters(target, Recorder())
    cache = target.new_cache(8)
    target.forward([1, 2], cache, rows=1)
    gone = [weakref.ref(one) for one in (cache, target, target._decoder, *drafters.values())]
    gc.disable()
    try:
        del cache, target, drafters
        assert [one() for one in gone] == [None] * 5
    finally:
        gc.enable()


def test_longer_rope_tables_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = RopeConfig(kind="linear", factor=2.0)
    monkeypatch.setattr(toys, "TINY", replace(toys.TINY, rope=rope))
    fixed, plain = targets()
    short, long = Pair(fixed, plain), Pair(fixed, plain)
    short.run(TOKENS[:5], rows=1)
    long.run(TOKENS, rows=1)  # the table grows
    short.run(TOKENS[:5], rows=1)


def test_a_stage_has_what_the_cache_has_and_zeros() -> None:
    assert [Stage.bucket(count) for count in (3, 512, 513)] == [512, 512, 1024]
    there = Stage(2, 1, 4, torch.float32, CPU)
    assert there.room == 0
    there.grow(512)
    one, other = (KVCache(2, 1, 4, 32, torch.float32, CPU) for _ in range(2))
    for value, cache in enumerate((one, other), start=1):
        cache.span(0, 32).fill_(value)
        cache.advance(20)
    for cache, length in ((one, 20), (one, 12), (other, 15), (one, 9)):
        cache.crop(length)
        there.enter(cache, 4)
        for layer in there.layers:
            assert torch.equal(layer[:, :, :length], cache.span(0, length)[0])
            assert not layer[:, :, length + 4 :].any()
            layer[:, :, length : length + 4] = 7
        there.leave(cache, 2)
        assert cache.length == cache.unchanged == length + 2
        assert (cache.span(length, length + 2) == 7).all()


def test_a_cpu_has_no_graphs() -> None:
    assert graph_capture(CPU) is None
