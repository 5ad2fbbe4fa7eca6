"""Rounded weights say nearly the same, and stand only where nobody counts on exactness."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.toys import new_sequence, tiny_drafters, tiny_target
from whiflash_engine import linear
from whiflash_engine.config import ArmName, SamplingConfig
from whiflash_engine.drafters.rounded import RoundedLinear, draft_linear
from whiflash_engine.kernels.cpu import kernels
from whiflash_engine.linear import Linear
from whiflash_engine.sampling import Sampler

ABLE = torch.backends.quantized.engine == "x86" and hasattr(torch, "quantize_per_channel")


@pytest.mark.skipif(not ABLE, reason="this torch or processor has no such layers")
@pytest.mark.parametrize("rows", [1, 8])
def test_it_says_nearly_what_the_exact_layer_says(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 96, generator=generator).bfloat16()
    weight[0] = 0
    weight[1] *= 1000  # a scale per output: the others keep theirs
    x = torch.randn(rows, 96, generator=generator).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = draft_linear(weight)
        assert isinstance(layer, RoundedLinear)
        found = layer(x)
    exact = x.float() @ weight.float().T
    assert found.dtype == torch.bfloat16 and found.shape == (rows, 64)
    assert (found[:, 0] == 0).all()
    sizes = x.float().norm(dim=1, keepdim=True) * weight.float().norm(dim=1)
    assert float(((found - exact).abs() / sizes.clamp_min(1)).max()) < 0.02


@pytest.mark.skipif(kernels() is None, reason="there is no C compiler")
def test_in_float32_a_kernel_of_our_own_rounds() -> None:
    layer = draft_linear(torch.ones(4, 4))
    assert isinstance(layer, Linear) and layer.packed is not None
    assert layer.packed.panels.dtype == torch.int8


def test_where_it_cannot_be_the_layer_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "kernels", lambda: None)
    weight, x = torch.randn(5, 4), torch.randn(2, 4)
    torch.testing.assert_close(draft_linear(weight)(x), x @ weight.T)
    monkeypatch.delattr(torch, "quantize_per_channel", raising=False)
    assert isinstance(draft_linear(torch.ones(4, 4).bfloat16()), Linear)


@pytest.mark.parametrize("name", ["ar", "diffusion"])
def test_drafters_in_bfloat16_draft_and_a_short_draft_begins_a_long_one(name: ArmName) -> None:
    target = tiny_target(dtype=torch.bfloat16)
    drafter = tiny_drafters(target)[name]
    sampler = Sampler(SamplingConfig())
    sequence = new_sequence(target, {name: drafter}, [1, 2, 3, 4, 5], 40)
    sequence.prefill()
    state = sequence.drafts[name]
    drafter.ingest(state, sequence.log, sequence.tokens)
    long = drafter.propose(state, sequence.tokens, drafter.max_draft, sampler).tokens
    assert len(long) == drafter.max_draft > 2
    for count in range(1, drafter.max_draft):
        assert drafter.propose(state, sequence.tokens, count, sampler).tokens == long[:count]
