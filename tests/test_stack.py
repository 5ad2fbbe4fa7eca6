"""All layers in one call of C: to the bit what they are one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests import toys
from whiflash_engine.cache import KVCache
from whiflash_engine.checkpoints.eagle3 import eagle3_shapes
from whiflash_engine.checkpoints.weights import decoder_shapes
from whiflash_engine.config import ModelConfig, SamplingConfig
from whiflash_engine.drafters.eagle3 import Eagle3Drafter
from whiflash_engine.features import FeatureLog
from whiflash_engine.kernels.cpu import kernels
from whiflash_engine.sampling import Sampler
from whiflash_engine.target.decoder import Decoder
from whiflash_engine.target.native import NativeTarget

pytestmark = pytest.mark.skipif(kernels() is None, reason="there is no C compiler")
FAMILIES = {
    "llama": toys.TINY,
    "qwen2": replace(toys.TINY, qkv_bias=True, tie_embeddings=False),
    "qwen3": replace(toys.TINY, head_dim=32, qk_norm=True),
    "mistral": replace(toys.TINY, sliding_window=9),
    "biases": replace(toys.TINY, qkv_bias=True, o_bias=True, mlp_bias=True),
}


def a_target(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch, *, fast: bool, heard: bool = True,
    rounded: bool = False,
) -> NativeTarget:  # fmt: skip
    """heard: somebody listens to the last layer."""
    generator = torch.Generator().manual_seed(3)
    weights: dict[str, Tensor] = {
        name: torch.randn(shape, generator=generator).mul_(0.3).bfloat16().float()
        for name, shape in decoder_shapes(config).items()
    }
    taps = (0, 2, config.num_layers) if heard else (0, 2)
    target = NativeTarget(config, weights, taps, rounded=rounded)
    if not fast:
        decoder = target._decoder
        assert decoder._stack is not None, "or nothing would be compared"
        monkeypatch.setattr(decoder, "_stack", None)
    return target


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("rounded", [False, True])
def test_all_layers_at_once_are_the_layers(
    family: str, threads: int, heard: bool, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody listens to the last one, which then finishes what is asked for alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        config = FAMILIES[family]
        targets = [
            a_target(config, monkeypatch, fast=fast, heard=heard, rounded=rounded)
            for fast in (True, False)
        ]
        caches = [target.new_cache(20) for target in targets]
        asked = {8: 0, 64: 64, 520: 11}  # the latter in two pieces
        for width in (5, 1, 2, 8, 13, 64, 3, 200, 1, 520):  # over the cache's first capacity, too
            tokens = [(7 * width + i) % 61 for i in range(width)]
            fast, slow = (
                target.forward(tokens, cache, rows=asked.get(width, min(width, 3)))
                for target, cache in zip(targets, caches, strict=True)
            )
            for name in ("logits", "features", "hidden"):
                assert torch.equal(getattr(fast, name), getattr(slow, name)), (width, name)
            for cache in caches:
                cache.crop(cache.length - width // 2)
        kept = [cache.span(0, cache.length) for cache in caches]
        assert torch.equal(*kept)
    finally:
        torch.set_num_threads(before)


def test_blocks_at_once_are_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a drafter: all rows see each other, and what they write is not kept."""
    target = toys.tiny_target()
    drafters = [toys.tiny_dflash(target) for _ in range(2)]
    assert drafters[1]._block._stack is not None
    monkeypatch.setattr(drafters[1]._block, "_stack", None)
    found = []
    for drafter in drafters:
        state = drafter.new_state(40)
        state.kv.all.copy_(
            torch.randn(state.kv.all.shape, generator=torch.Generator().manual_seed(1))
        )
        state.kv.advance(11)
        found.append(drafter._logits(state, [5, 4, 4, 4, 4, 4][: drafter.config.block_size], 1))
        assert state.kv.length == 11
    assert torch.equal(*found)


@pytest.mark.parametrize("count", [1, 5, 16, 17])
def test_slots_at_once_are_the_layer(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of EAGLE-3, whose q, k and v read something else than the stream."""
    target = toys.tiny_target()
    drafters = [toys.tiny_eagle3(target) for _ in range(2)]
    assert drafters[1]._layer.stack is not None
    monkeypatch.setattr(drafters[1]._layer, "stack", None)
    g = torch.randn(count + 3, toys.TINY.hidden_size, generator=torch.Generator().manual_seed(1))
    states = [drafter.new_state(40) for drafter in drafters]
    for start, stop in ((0, 3), (3, count + 3)):
        found = [
            drafter._slots(state.kv, g[start:stop], [*range(start, stop)])
            for drafter, state in zip(drafters, states, strict=True)
        ]
        assert torch.equal(*found)
    assert torch.equal(*(state.kv.span(0, count + 3) for state in states))


@pytest.mark.parametrize(
    "options",
    [(), ("norm_before_residual",), ("qk_norm",), ("norm_before_fc",), ("fc_norm",),
     ("norm_before_fc", "fc_norm"), ("wider",)],
)  # fmt: skip
def test_what_is_taken_in_at_once_is_its_steps(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of EAGLE-3, some features after others, of which it listens to some. wider: than the
    target, with an embedding and a head of its own."""
    target = toys.tiny_target(taps=(0, 1, 2, 3))
    config, _ = toys.tiny_eagle3_parts(target)
    config = replace(config, aux=(2, 0, 3))
    if options == ("wider",):
        config = replace(config, hidden_size=48)
    else:
        config = replace(config, **dict.fromkeys(options, True))  # type: ignore[arg-type]
    weights = toys._random(eagle3_shapes(config)[0], 5, torch.float32)
    generator = torch.Generator().manual_seed(2)
    for name, weight in weights.items():
        if weight.dim() == 1:  # or one norm would do for another
            weights[name] = 0.5 + torch.rand(weight.shape, generator=generator)
    drafters = [Eagle3Drafter(config, weights, target) for _ in range(2)]
    assert drafters[0]._ingest is not None
    monkeypatch.setattr(drafters[1], "_ingest", None)
    tokens = [(7 * i + 3) % 61 for i in range(60)]
    features = target.forward(tokens[:-1], target.new_cache(60), rows=1).features
    log = FeatureLog(features.shape[1], target.dtype, target.device)
    states = [drafter.new_state(2) for drafter in drafters]  # they have to grow
    for start, stop in ((0, 3), (3, 4), (4, 20), (20, 37), (37, 39), (39, 59)):
        log.append(features[start:stop])
        for drafter, state in zip(drafters, states, strict=True):
            drafter.ingest(state, log, tokens[: stop + 1])
        one, other = states
        assert one.newest is not None and other.newest is not None
        assert torch.equal(one.newest, other.newest) and one.watermark == stop
        assert torch.equal(one.kv.span(0, stop), other.kv.span(0, stop))


def test_no_slot_is_taken_in_that_does_not_fit() -> None:
    target = toys.tiny_target()
    drafter = toys.tiny_eagle3(target)
    run, kv = drafter._ingest, drafter.new_state(4).kv
    assert run is not None
    places, features = drafter._rope.table(0, 2), torch.zeros(2, len(target.taps) * 32)
    for rows, wide, tokens in ((1, 0, [1, 2]), (2, 1, [1, 2]), (2, 0, [1]), (2, 0, [1, 61])):
        with pytest.raises(ValueError, match="do not fit"):
            run(features[:rows, wide:], tokens, places, kv)
    with pytest.raises(ValueError, match="do not fit"):
        run(features, [1, 2], places, kv, rows=3)
    kv.advance(kv.capacity - 1)
    with pytest.raises(ValueError, match="do not fit"):
        run(features, [1, 2], places, kv)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("option", ["", "norm_output", "norm_before_residual", "qk_norm"])
def test_a_chain_at_once_is_its_steps(
    option: str, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of EAGLE-3, with all its dials, with words of the text beside a reduced vocabulary, and
    behind tokens that are known."""
    target, sampler = toys.tiny_target(), Sampler(SamplingConfig())
    config, _ = toys.tiny_eagle3_parts(target)
    if option:
        config = replace(config, **{option: True})  # type: ignore[arg-type]
    weights = toys._random(eagle3_shapes(config)[0], 5, torch.float32)
    if reduced:
        weights["draft_ids"] = torch.arange(0, 61, 12)
    drafters = [Eagle3Drafter(config, weights, target, 6) for _ in range(2)]
    assert drafters[1]._chain is not None
    monkeypatch.setattr(drafters[1], "_chain", None)
    tokens, said = [3, 1, 4, 1, 5, 9, 2, 6, 7], set[int]()
    output = target.forward(tokens[:-1], target.new_cache(20), rows=1)
    log = FeatureLog(output.features.shape[1], target.dtype, target.device)
    log.append(output.features)
    states = [drafter.new_state(len(tokens)) for drafter in drafters]
    for drafter, state in zip(drafters, states, strict=True):
        drafter.ingest(state, log, tokens)
    for known in ((), (8,), (2, 60, 7)):
        for count in (6, 1, 4, 3):
            fast, slow = (
                drafter.propose(state, tokens, count, sampler, known).tokens
                for drafter, state in zip(drafters, states, strict=True)
            )
            assert fast == slow and len(fast) == count and fast[: len(known)] == known[:count]
            assert states[0].watermark == len(tokens) - 1
            said |= {*fast} - {*known}
    assert not reduced or any(token % 12 for token in said), "no word of the text was said"


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder: Decoder = a_target(FAMILIES["llama"], monkeypatch, fast=True)._decoder
    c, run = decoder.config, decoder._stack
    assert run is not None

    def tried(
        rows: int = 2, layers: int = c.num_layers, wide: int = c.hidden_size, halves: bool = False
    ) -> Tensor:
        dtype = torch.bfloat16 if halves else torch.float32
        cache = KVCache(layers, c.num_kv_heads, c.head_dim, 4, dtype, torch.device("cpu"))
        table = torch.ones(rows, 1, c.head_dim)
        return run(torch.zeros(rows, wide), (table, table), cache, torch.zeros(rows, 8), {})

    assert tried().shape == (2, c.hidden_size)
    with pytest.raises(ValueError, match="rows do not fit behind"):
        tried(rows=5)
    with pytest.raises(ValueError, match="rows do not fit behind"):
        tried(layers=c.num_layers - 1)
    with pytest.raises(ValueError, match="rows do not fit behind"):
        tried(wide=c.hidden_size + 8)
    with pytest.raises(ValueError, match="not all is float32"):
        tried(halves=True)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    config = FAMILIES["llama"]
    weights = {n: torch.zeros(shape) for n, shape in decoder_shapes(config).items()}
    weights["model.layers.1.self_attn.o_proj.weight"] = torch.zeros(config.hidden_size, 48)
    with pytest.raises(ValueError, match="should be"):
        NativeTarget(config, weights)


def test_weights_that_bfloat16_does_not_hold_go_layer_by_layer() -> None:
    config = FAMILIES["llama"]
    weights = {name: torch.randn(shape) for name, shape in decoder_shapes(config).items()}
    assert NativeTarget(config, weights)._decoder._stack is None
