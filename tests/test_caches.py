"""Drafter KV after a lazy catch-up equals eager ingestion; KV-only equals the full layer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.toys import TINY, tiny_dflash, tiny_eagle3, tiny_eagle3_parts, tiny_target
from whiflash_engine.cache import KVCache
from whiflash_engine.config import SamplingConfig
from whiflash_engine.drafters.dflash import DFlashDrafter, DFlashState
from whiflash_engine.drafters.eagle3 import DEPTH, Eagle3Drafter, Eagle3State
from whiflash_engine.drafters.taps import Taps
from whiflash_engine.errors import ConfigError
from whiflash_engine.features import FeatureLog
from whiflash_engine.sampling import Sampler
from whiflash_engine.target.native import NativeTarget

_PROMPT = 12
_BACKLOGS = [1, 7, 64, 300]


def _log(tokens: list[int]) -> FeatureLog:
    target = tiny_target()
    output = target.forward(tokens[:-1], target.new_cache(512), rows=1)
    log = FeatureLog(output.features.shape[1], torch.float32, torch.device("cpu"))
    log.append(output.features)
    return log


def _tokens(count: int) -> list[int]:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(TINY.vocab_size, (count,), generator=generator).tolist()


def _prefix(log: FeatureLog, length: int) -> FeatureLog:
    part = FeatureLog(log.width, torch.float32, torch.device("cpu"))
    part.append(log.rows(0, length))
    return part


def _held(kv: KVCache) -> Tensor:
    return torch.stack(list(kv.places(0)[1]))


@pytest.mark.parametrize("backlog", _BACKLOGS)
@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_lazy_catch_up_equals_eager_ingestion(kind: str, backlog: int) -> None:
    target = tiny_target()
    drafter = tiny_eagle3(target) if kind == "ar" else tiny_dflash(target)
    tokens = _tokens(_PROMPT + backlog + 1)
    log = _log(tokens)
    lazy, eager = drafter.new_state(512), drafter.new_state(512)
    drafter.ingest(lazy, _prefix(log, _PROMPT), tokens[: _PROMPT + 1])
    drafter.ingest(lazy, log, tokens)
    for end in range(1, log.length + 1):  # one position at a time: what "eager" costs
        drafter.ingest(eager, _prefix(log, end), tokens[: end + 1])
    assert lazy.watermark == eager.watermark == log.length
    assert isinstance(lazy, Eagle3State | DFlashState)
    assert isinstance(eager, Eagle3State | DFlashState)
    torch.testing.assert_close(_held(lazy.kv), _held(eager.kv))
    chooser = Sampler(SamplingConfig())
    assert drafter.propose(lazy, tokens, 4, chooser) == drafter.propose(eager, tokens, 4, chooser)


def _full_layer(target: NativeTarget, log: FeatureLog, tokens: list[int]) -> Tensor:
    """The EAGLE-3 layer, all of it for every slot, in plain operations."""
    w, c = tiny_eagle3_parts(target)[1], TINY

    def norm(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (c.hidden_size,), w[name], c.rms_norm_eps)

    n = log.length
    g = log.rows(0, n) @ w["fc.weight"].T
    e = target.embed(torch.tensor(tokens[1:]))
    a = torch.cat(
        (norm("midlayer.input_layernorm.weight", e), norm("midlayer.hidden_norm.weight", g)), -1
    )
    half = c.head_dim // 2
    angle = torch.outer(torch.arange(n).float(), 1e4 ** -(torch.arange(half).float() / half))
    cos, sin = angle.cos().repeat(1, 2)[:, None], angle.sin().repeat(1, 2)[:, None]

    def heads(name: str, rotate: bool) -> Tensor:
        x = (a @ w[f"midlayer.self_attn.{name}_proj.weight"].T).view(n, -1, c.head_dim)
        turned = torch.cat((-x[..., half:], x[..., :half]), -1)
        return x * cos + turned * sin if rotate else x

    q, k, v = heads("q", True), heads("k", True), heads("v", False)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * c.head_dim**-0.5
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
    mixed = torch.einsum("hqk,khd->qhd", scores, v).reshape(n, -1)
    h = g + mixed @ w["midlayer.self_attn.o_proj.weight"].T
    inner = norm("midlayer.post_attention_layernorm.weight", h)
    gate = inner @ w["midlayer.mlp.gate_proj.weight"].T
    up = inner @ w["midlayer.mlp.up_proj.weight"].T
    return h + (torch.nn.functional.silu(gate) * up) @ w["midlayer.mlp.down_proj.weight"].T


@pytest.mark.parametrize("backlog", _BACKLOGS)
def test_kv_only_prefill_equals_the_full_layer(backlog: int, exact: None) -> None:
    target = tiny_target()
    drafter = tiny_eagle3(target)
    tokens = _tokens(backlog + 1)
    log = _log(tokens)
    state = drafter.new_state(512)
    drafter.ingest(state, log, tokens)
    assert state.newest is not None
    full = _full_layer(target, log, tokens)
    torch.testing.assert_close(state.newest[0], full[-1], atol=1e-4, rtol=1e-4)


class _Whole(Eagle3Drafter):
    """Runs the whole layer at every slot."""

    def _take_in(
        self, kv: KVCache, features: Tensor, tokens: Sequence[int], rows: int = 1
    ) -> Tensor:
        return super()._take_in(kv, features, tokens, rows=len(tokens))


@pytest.mark.parametrize("backlog", _BACKLOGS)
def test_so_it_does_where_the_whole_layer_runs(backlog: int) -> None:
    target = tiny_target()
    tokens = _tokens(backlog + 1)
    log = _log(tokens)
    lean = tiny_eagle3(target)
    whole = _Whole(*tiny_eagle3_parts(target), target)
    states = [drafter.new_state(512) for drafter in (lean, whole)]
    for drafter, state in zip((lean, whole), states, strict=True):
        drafter.ingest(state, log, tokens)
    one, other = states
    assert one.newest is not None and other.newest is not None
    torch.testing.assert_close(one.newest, other.newest, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(_held(one.kv), _held(other.kv))


def test_how_many_tokens_are_drafted() -> None:
    target = tiny_target()
    parts = tiny_eagle3_parts(target)
    depths = [Eagle3Drafter(*parts, target, depth).max_draft for depth in (None, 3)]
    assert depths == [DEPTH, 3] and Eagle3Drafter(*parts, target).max_draft == DEPTH
    with pytest.raises(ConfigError, match="ar_depth=0"):
        Eagle3Drafter(*parts, target, 0)


def test_a_boundary_that_is_not_tapped_is_named() -> None:
    target = tiny_target(taps=(1, 3))
    rows = torch.arange(2 * 2 * 32).float().view(2, -1)
    assert torch.equal(Taps(target, (3, 1))(rows).flatten(1), rows.roll(32, 1))
    with pytest.raises(ConfigError, match="tap=2"):
        Taps(target, (3, 2))


@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_drafting_leaves_nothing_behind(kind: str) -> None:
    target = tiny_target()
    drafter: Eagle3Drafter | DFlashDrafter = (
        tiny_eagle3(target) if kind == "ar" else tiny_dflash(target)
    )
    tokens = _tokens(20)
    log = _log(tokens)
    state = drafter.new_state(64)
    drafter.ingest(state, log, tokens)
    chooser = Sampler(SamplingConfig())
    first = drafter.propose(state, tokens, 4, chooser)
    assert state.watermark == 19
    assert drafter.propose(state, tokens, 4, chooser) == first
    assert drafter.propose(state, tokens, 2, chooser).tokens == first.tokens[:2]


@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_a_cropped_drafter_catches_up_to_the_same_proposal(kind: str) -> None:
    target = tiny_target()
    drafter = tiny_eagle3(target) if kind == "ar" else tiny_dflash(target)
    tokens = _tokens(20)
    log = _log(tokens)
    state = drafter.new_state(64)
    drafter.ingest(state, log, tokens)
    chooser = Sampler(SamplingConfig())
    first = drafter.propose(state, tokens, 4, chooser)
    for length in (19, 15, 15, 0):
        state.crop(length)
        assert state.watermark <= length
        drafter.ingest(state, log, tokens)
        assert drafter.propose(state, tokens, 4, chooser).tokens == first.tokens
