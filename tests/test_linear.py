"""A product comes out the same in whatever form its weights are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from whiflash_engine import linear
from whiflash_engine.kernels.cpu import kernels
from whiflash_engine.linear import Linear

HALVES = hasattr(torch.ops.quantized, "linear_prepack_fp16") and (
    torch.backends.quantized.engine == "x86"
)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def _form(layer: Linear) -> str:
    return str(vars(layer)["_product"].func.__name__)


@pytest.fixture
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "kernels", lambda: None)


@pytest.mark.parametrize("rows", [0, 1, 2, 8, 300])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "published"),
    [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)],
)
def test_every_form_gives_the_product(
    dtype: torch.dtype, published: bool, bias: bool, rows: int
) -> None:
    weight, added, x = _normal(70, 33), _normal(70), _normal(rows, 33).to(dtype)
    if published:  # as models are: in bfloat16
        weight, added = weight.bfloat16(), added.bfloat16()
    weight, added = weight.to(dtype), added.to(dtype)
    found = Linear(weight, added if bias else None)(x)
    exact = x.double() @ weight.double().T + (added.double() if bias else 0)
    assert found.dtype == dtype and found.shape == (rows, 70)
    ours = dtype == torch.float32 and published and kernels() is not None
    assert (_form(Linear(weight)) == "product") == ours
    loose = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.double(), exact, atol=20 * loose, rtol=loose)


@pytest.mark.skipif(not HALVES, reason="this torch or processor has no such product")
@pytest.mark.parametrize("rows", [0, 1, 2, 8, 300])
@pytest.mark.parametrize("bias", [False, True])
def test_so_does_half_precision(without_a_compiler: None, bias: bool, rows: int) -> None:
    weight, added, x = _normal(70, 33).half().float(), _normal(70), _normal(rows, 33)
    layer = Linear(weight, added if bias else None)
    assert _form(layer) == "_half_product"
    exact = x.double() @ weight.double().T + (added.double() if bias else 0)
    torch.testing.assert_close(layer(x).double(), exact, atol=2e-4, rtol=1e-5)


@pytest.mark.skipif(not HALVES, reason="this torch or processor has no such product")
@pytest.mark.parametrize(
    ("weight", "survives"),
    [
        (torch.tensor([[1.0, -0.375]]), True),
        (torch.tensor([[1.0, 3e-6]]).bfloat16().float(), True),  # loses at most 3e-8
        (torch.tensor([[2e-6, 3e-6]]).bfloat16().float(), False),  # which is too much of these
        (torch.zeros(1, 2), True),
        (torch.tensor([[1.0, 1.0 + 2**-12]]), False),
        (torch.tensor([[1.0, 70000.0]]), False),
        (torch.tensor([[1.0, torch.inf]]), False),
        (torch.tensor([[1.0, torch.nan]]), False),
        (torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16), False),
    ],
)
def test_only_weights_that_survive_it_are_kept_in_half_precision(
    without_a_compiler: None, weight: Tensor, survives: bool
) -> None:
    assert (_form(Linear(weight)) == "_half_product") == survives


def test_what_the_processor_cannot_do_is_left_to_torch(
    without_a_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_halves", lambda weight: False)
    monkeypatch.setattr(linear, "_onednn_takes", lambda dtype: False)
    weight, x = _normal(5, 4), _normal(2, 4)
    layer = Linear(weight)
    assert _form(layer) == "linear"
    torch.testing.assert_close(layer(x), x @ weight.T)


def test_without_onednn_bfloat16_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert _form(Linear(_normal(5, 4).bfloat16())) == "linear"


@pytest.mark.skipif(not HALVES, reason="this torch or processor has no such product")
def test_a_row_says_nearly_the_same_among_others() -> None:
    weight, x = _normal(96, 64).bfloat16().float(), _normal(8, 64)
    layer = Linear(weight)
    alone = torch.cat([layer(row[None]) for row in x])
    torch.testing.assert_close(layer(x), alone, atol=1e-5, rtol=1e-5)
