"""Kernels of our own: what torch computes, and a row comes out the same in passes of all widths."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from whiflash_engine.kernels import compiled
from whiflash_engine.kernels.compiled import Product

WIDTHS = (0, 1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 17, 40)


@pytest.fixture(scope="module")
def product() -> Product:
    found = compiled.product()
    if found is None:
        pytest.skip("there is no C compiler, or another processor")
    return found


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("out", "into"), [(1, 1), (16, 8), (70, 33), (200, 576), (960, 200)])
def test_the_product_is_the_same_to_the_bit_at_all_widths(
    out: int, into: int, threads: int, product: Product
) -> None:
    weight, x = _normal(out, into).bfloat16(), _normal(max(WIDTHS), into)
    packed, before = product.pack(weight.float()), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = torch.cat([product(packed, out, row[None]) for row in x])
        for width in WIDTHS:
            assert torch.equal(product(packed, out, x[:width]), alone[:width]), width
    finally:
        torch.set_num_threads(before)
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(alone.double(), exact, atol=2e-4, rtol=1e-5)


def test_the_product_takes_rows_that_do_not_lie_together(product: Product) -> None:
    weight, x = _normal(20, 12).bfloat16().float(), _normal(9, 24)
    packed = product.pack(weight)
    torch.testing.assert_close(product(packed, 20, x[::2, ::2]), x[::2, ::2] @ weight.T)


@pytest.mark.parametrize("x", [torch.zeros(2, 13), torch.zeros(12), torch.zeros(2, 12).double()])
def test_the_product_reads_nothing_that_is_not_x(x: Tensor, product: Product) -> None:
    with pytest.raises(ValueError, match="not float32"):
        product(product.pack(torch.zeros(20, 12)), 20, x)


@pytest.fixture
def fresh() -> Iterator[None]:
    """What is found is found once; not here."""
    compiled.product.cache_clear()
    yield
    compiled.product.cache_clear()


def test_without_a_compiler_callers_do_without(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    monkeypatch.setattr(compiled, "_has_avx2", lambda: True)
    with caplog.at_level(logging.INFO, compiled.__name__):
        assert compiled.product() is None
    assert compiled._openmp() is None or "no-such-compiler" in caplog.text


def test_what_does_not_compile_is_done_without(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "product.c"
    broken.write_text("this is no C")
    monkeypatch.setattr(compiled, "_SOURCE", broken)
    assert compiled.product() is None


def test_a_processor_without_wide_registers_is_left_to_torch(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_has_avx2", lambda: False)
    assert compiled.product() is None
