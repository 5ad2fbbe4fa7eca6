"""Kernels of our own: what torch computes, and a row comes out the same in passes of all widths."""

from __future__ import annotations

import logging
import math
import platform
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys import tiny_target
from whiflash_engine import layers
from whiflash_engine.config import RopeConfig
from whiflash_engine.kernels import build as building
from whiflash_engine.kernels import pages as paging
from whiflash_engine.kernels.build import build
from whiflash_engine.kernels.cpu import Kernels, kernels
from whiflash_engine.kernels.pages import Pages
from whiflash_engine.layers import RMSNorm, Rope, Sight, attention, rotate, swiglu

WIDTHS = (0, 1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 17, 32, 64)


@pytest.fixture(scope="module")
def own() -> Kernels:
    found = kernels()
    if found is None:
        pytest.skip("there is no C compiler, or another processor")
    return found


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("cc") is None
    or not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="another system or processor, or no compiler",
)  # fmt: skip
def test_they_compile_where_they_can() -> None:
    """Or all other tests of them would be skipped."""
    assert kernels() is not None


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("out", "into"), [(1, 1), (16, 8), (70, 33), (200, 576), (960, 200)])
def test_a_product_is_the_same_to_the_bit_at_all_widths(
    out: int, into: int, own: Kernels, threads: None
) -> None:
    weight, x, bias = _normal(out, into).bfloat16(), _normal(max(WIDTHS), into), _normal(out)
    for packed, added in (
        (own.pack(weight.float()), torch.zeros(out)), (own.pack(weight.float(), bias), bias),
    ):  # fmt: skip
        alone = torch.cat([own.product(packed, row[None]) for row in x])
        for width in WIDTHS:
            assert torch.equal(own.product(packed, x[:width]), alone[:width]), width
        exact = x.double() @ weight.double().T + added
        torch.testing.assert_close(alone.double(), exact, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize(("out", "into"), [(1, 1), (16, 8), (70, 33), (200, 576), (960, 200)])
def test_a_rounded_product_is_that_of_the_nearest_of_255_steps(
    out: int, into: int, own: Kernels, threads: None
) -> None:
    """Steps of an output's own, and of 32 inputs' own; and the same to the bit at all widths."""
    weight, x, bias = _normal(out, into), _normal(max(WIDTHS), into), _normal(out)
    weight[-1] *= 1000
    if out > 1:
        weight[0] = 0
    x[3] = 0
    x[:, :40] *= 1000
    packed = own.pack(weight, bias, rounded=True)
    alone = torch.cat([own.product(packed, row[None]) for row in x])
    for width in WIDTHS:
        assert torch.equal(own.product(packed, x[:width]), alone[:width]), width
    blocks = F.pad(x, (0, -into % 32)).view(len(x), -1, 32)
    exact = _nearest(blocks).flatten(1)[:, :into].double() @ _nearest(weight).double().T
    torch.testing.assert_close(alone.double(), exact + bias, atol=2e-2, rtol=1e-4)


def _nearest(x: Tensor) -> Tensor:
    """The last axis in steps of a 127th of its largest, as C finds them."""
    most = x.abs().amax(-1, keepdim=True)
    return (x * (127 / most).nan_to_num(posinf=0.0)).round() * (most / 127)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_rounded_product_hides_no_overflow(bad: float, own: Kernels) -> None:
    x = torch.zeros(2, 40)
    x[1, 35] = bad
    found = own.product(own.pack(_normal(3, 40), rounded=True), x)
    assert (found[0] == 0).all() and found[1].isnan().all()


def test_a_product_takes_rows_that_do_not_lie_together(own: Kernels) -> None:
    weight, x = _normal(20, 12).bfloat16().float(), _normal(9, 24)
    found = own.product(own.pack(weight), x[::2, ::2])
    torch.testing.assert_close(found, x[::2, ::2] @ weight.T)


@pytest.mark.parametrize(("out", "into"), [(0, 8), (1, 1), (16, 8), (70, 33), (200, 576)])
def test_dots_are_a_product(out: int, into: int, own: Kernels, threads: None) -> None:
    weight, x = _normal(out, into), _normal(7, into)
    torch.testing.assert_close(own.dots(weight, x), x @ weight.T, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(own.dots(weight[::2], x[::3]), x[::3] @ weight[::2].T)


def test_memory_for_weights_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_PIECE", 1000)
    pages, shapes = Pages(), [(3, 7), (1,), (100, 9), (0, 4), (20, 11), (5,)]
    taken = [pages.take(*shape, dtype=torch.bfloat16) for shape in shapes]
    for i, one in enumerate(taken):
        one.fill_(i)
    for i, (one, shape) in enumerate(zip(taken, shapes, strict=True)):
        assert one.shape == shape and one.is_contiguous() and bool((one == i).all())
        assert one.data_ptr() % 64 == 0


@pytest.mark.parametrize("x", [torch.zeros(2, 13), torch.zeros(12), torch.zeros(2, 12).double()])
def test_a_product_reads_nothing_that_is_not_there(x: Tensor, own: Kernels) -> None:
    with pytest.raises(ValueError, match="is not float32"):
        own.product(own.pack(torch.zeros(20, 12)), x)


@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (8, 1)])
@pytest.mark.parametrize("width", [16, 64, 80])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 5), (False, None), (False, 9)])
def test_attention_is_what_torch_makes_of_it(
    heads: tuple[int, int], width: int, causal: bool, window: int | None, threads: None,
    own: Kernels, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (q_heads, kv_heads), sight = heads, Sight(causal=causal, window=window)
    kept = _normal(2, 1, kv_heads, 40, width)
    for n, length in ((1, 1), (1, 2), (3, 37), (8, 8), (13, 40)):
        q = 3 * _normal(n, q_heads + 2, width)[:, :q_heads]
        keys, values = kept[0, :, :, :length], kept[1, :, :, :length]
        found = attention(q, keys, values, sight)
        with monkeypatch.context() as patch:
            patch.setattr(layers, "kernels", lambda: None)
            expected = attention(q, keys, values, Sight(causal=causal, window=window))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 5, 6, 30])
def test_attention_is_the_same_to_the_bit_at_all_widths(
    window: int | None, own: Kernels, threads: None
) -> None:
    """Row r of a pass against a pass that ends with it: four queries at once may be others."""
    q, kept, sight = 3 * _normal(17, 9, 64), _normal(2, 1, 3, 50, 64), Sight(window=window)
    whole = attention(q, kept[0], kept[1], sight)
    for width in (1, 2, 3, 4, 8, 16):
        seen = kept[:, :, :, : 33 + width]
        part = attention(q[:width], seen[0], seen[1], sight)
        assert torch.equal(part, whole[:width]), width


def test_attention_to_what_cannot_be_told_apart_is_the_mean(own: Kernels) -> None:
    """And scores so large that their exponentials overflow weigh as they should."""
    values = _normal(1, 1, 7, 16)
    same = attention(torch.ones(1, 1, 16), torch.ones(1, 1, 7, 16), values, Sight())
    torch.testing.assert_close(same[0], values[0, 0].mean(0))
    keys = torch.zeros(1, 1, 7, 16)
    keys[0, 0, 4] = 100.0
    first = attention(100 * torch.ones(1, 1, 16), keys, values, Sight())
    assert torch.equal(first[0], values[0, 0, 4])


def test_what_is_no_number_stays_none(own: Kernels) -> None:
    """Broken weights must not come out as fluent nonsense."""
    keys = torch.ones(1, 1, 7, 16)
    keys[0, 0, 3, 2] = torch.nan
    assert attention(torch.ones(1, 1, 16), keys, torch.ones(1, 1, 7, 16), Sight()).isnan().all()
    assert swiglu(torch.full((1, 32), torch.nan)).isnan().all()
    assert RMSNorm(torch.ones(16), 1e-5)(torch.full((1, 16), torch.nan)).isnan().all()


_WRONG: dict[str, Callable[[Kernels], object]] = {
    "keys of another type": lambda own: _attend(own, keys=torch.zeros(1, 2, 5, 16).double()),
    "values of another length": lambda own: _attend(own, values=torch.zeros(1, 2, 4, 16)),
    "queries of another type": lambda own: _attend(own, q=torch.zeros(2, 4, 16).half()),
    "fewer keys than rows": lambda own: _attend(own, q=torch.zeros(6, 4, 16)),
    "heads of no group": lambda own: _attend(own, q=torch.zeros(2, 3, 16)),
    "an odd head": lambda own: own.rotate(*[torch.zeros(2, 1, 24)] * 3),
    "tables of another length": lambda own: own.rotate(
        torch.zeros(2, 1, 16), *[torch.zeros(3, 1, 16)] * 2
    ),
    "a weight of another type": lambda own: own.rms_norm(
        torch.zeros(2, 8), torch.zeros(8).double(), 1e-5
    ),
    "a weight of another size": lambda own: own.rms_norm(torch.zeros(2, 8), torch.zeros(16), 1e-5),
    "gates of another type": lambda own: own.swiglu(torch.zeros(2, 16).double()),
    "gates of an odd size": lambda own: own.swiglu(torch.zeros(2, 24)),
}


def _attend(own: Kernels, **other: Tensor) -> Tensor:
    given = {"q": torch.zeros(2, 4, 16), "keys": torch.zeros(1, 2, 5, 16)}
    given = {**given, "values": given["keys"], **other}
    return own.attention(given["q"], given["keys"], given["values"], causal=True, window=None)


@pytest.mark.parametrize("wrong", sorted(_WRONG))
def test_nothing_is_read_that_is_not_there(wrong: str, own: Kernels) -> None:
    _attend(own)
    with pytest.raises(ValueError, match=r"is not float32|do not fit"):
        _WRONG[wrong](own)


def test_what_is_between_the_products_is_what_torch_makes_of_it(own: Kernels) -> None:
    for n in (1, 3, 8):
        x, weight = 5 * _normal(n, 3, 48)[:, 1:], _normal(48)
        torch.testing.assert_close(
            RMSNorm(weight, 1e-5)(x), F.rms_norm(x, (48,), weight, 1e-5), atol=1e-6, rtol=1e-5
        )
        gates = 200 * _normal(n, 96)  # silu's exponential overflows for some of them
        torch.testing.assert_close(
            swiglu(gates), F.silu(gates[:, :48]) * gates[:, 48:], atol=1e-5, rtol=1e-5
        )
        heads = _normal(n, 5, 32)[:, 1:4]
        cos, sin = Rope(RopeConfig(), 32, torch.float32, heads.device).table(7, n)
        swapped = torch.cat((heads[..., 16:], heads[..., :16]), -1)
        torch.testing.assert_close(rotate(heads, cos, sin), heads * cos + swapped * sin)


def test_they_are_used_where_they_fit(own: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    used = list[str]()

    def noted(name: str) -> None:
        made = getattr(Kernels, name)

        def call(*given: object, **more: object) -> object:
            used.append(name)
            return made(*given, **more)

        monkeypatch.setattr(Kernels, name, call)

    for name in ("attention", "rms_norm", "swiglu", "rotate"):
        noted(name)

    def run(rows: int, size: int, dtype: torch.dtype) -> list[str]:
        used.clear()
        x = torch.ones(rows, size, dtype=dtype)
        RMSNorm(torch.ones(size, dtype=dtype), 1e-5)(x)
        swiglu(x)
        rotate(x[:, None], x[:, None], x[:, None])
        attention(x[:, None], x[None, None], x[None, None], Sight())
        return list(used)

    assert run(4, 16, torch.float32) == ["rms_norm", "swiglu", "rotate", "attention"]
    assert run(4, 8, torch.float32) == ["rms_norm"]
    assert run(513, 16, torch.float32) == run(4, 16, torch.bfloat16) == []


SOURCE = "void nothing(void) {}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "nothing.c").write_text(SOURCE)
    return tmp_path / "nothing.c"


def test_without_a_compiler_there_are_none(
    source: Path, own: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert build([source]) is not None
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with caplog.at_level(logging.INFO, building.__name__):
        assert build([source]) is None
    assert "no-such-compiler" in caplog.text


def test_what_does_not_compile_is_done_without(
    source: Path, own: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    source.write_text("this is no C")
    with caplog.at_level(logging.INFO, building.__name__):
        assert build([source]) is None
    assert "nothing.c:1" in caplog.text  # the compiler's own words


def test_what_does_not_link_is_done_without(source: Path) -> None:
    source.write_text("void missing(void); void nothing(void) { missing(); }")
    assert build([source]) is None


def test_another_machine_is_left_to_torch(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_has_avx2", lambda: False)
    assert build([source]) is None


@pytest.mark.parametrize("compiler", ["cc 'unfinished", "false"])
def test_a_compiler_that_is_none_is_done_without(
    compiler: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert build([source]) is None


def test_a_pass_is_the_same_to_the_bit_at_all_widths(own: Kernels, threads: None) -> None:
    """So drafts change no logit, and greedy text needs no word about near ties."""
    target, draw = tiny_target(), random.Random(0)
    tokens = [draw.randrange(target.config.vocab_size) for _ in range(60)]
    cache = target.new_cache(64)
    target.forward(tokens[:40], cache, rows=0)
    whole = target.forward(tokens[40:], cache, rows=20)
    for width in (1, 2, 5, 8, 13):
        cache.crop(40)
        part = target.forward(tokens[40 : 40 + width], cache, rows=width)
        for name in ("logits", "features", "hidden"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[:width]), (name, width)


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 60.0])
def test_entropy_is_what_torch_makes_of_it(spread: float, own: Kernels) -> None:
    x = spread * _normal(4096)
    x[7] = -torch.inf  # as a model that never says a token has it
    p = x.double().softmax(0)
    exact = -(p * p.clamp_min(1e-300).log()).sum()
    assert own.entropy(x) == pytest.approx(float(exact), abs=2e-5)
    assert own.entropy(torch.cat((torch.zeros(1), torch.full((7,), -torch.inf)))) == 0.0
    x[9] = torch.nan
    assert torch.tensor(own.entropy(x)).isnan()
    with pytest.raises(ValueError, match="is not float32"):
        own.entropy(torch.zeros(9))
