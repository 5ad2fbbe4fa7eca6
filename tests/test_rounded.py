"""Rounded weights say nearly the same, and stand only where nobody counts on exactness."""

from __future__ import annotations

import warnings

import pytest
import torch

from whiflash_engine.drafters.rounded import RoundedLinear, draft_linear
from whiflash_engine.layers import Linear

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


def test_float32_is_left_as_it_is() -> None:
    assert isinstance(draft_linear(torch.ones(4, 4)), Linear)
