"""The kernels of a processor, in float32: products, attention, what is between, the router's
network.

Each is what its C file says. A row comes out the same, to the bit, whatever else is in the pass.
What is called by itself between products of torch's has one thread: torch's own still wait for more
then, on the processors that helpers would want.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from whiflash_engine.kernels.build import build
from whiflash_engine.kernels.pages import Pages

_SOURCES: Final = (
    "product.c", "rounded.c", "dots.c", "attention.c", "pointwise.c", "layers.c", "ingest.c",
    "chain.c", "perceptron.c", "team.c",
)  # fmt: skip
_P, _N, _T, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_ARGUMENTS: Final = {
    "product": [_P] * 3 + [_N] * 3 + [_T],
    "dots": [_P] * 3 + [_N] * 3 + [_T],
    "attention": [_P] * 5 + [_N] * 8 + [_T] * 2,
    "rms_norm": [_P] * 3 + [_N] * 2 + [_F],
    "swiglu": [_P] * 2 + [_N] * 2 + [_T],
    "rotate": [_P] * 4 + [_N] * 4,
    "entropy": [_P, _N],
    "layers": [_P] * 10 + [_N] * 3 + [_T],
    "ingest": [_P] * 5 + [_N] + [_P] * 5 + [_N] * 2 + [_T],
    "chain": [_P] * 8 + [_N] * 2 + [_F, _P, _T],
    "perceptron": [_P] * 7 + [_N] * 4,
}

_RESULTS: Final = {"entropy": _F, "chain": _N}


class Matrix(ctypes.Structure):
    """As C has it."""

    _fields_ = (("panels", _P), ("scales", _P), ("bias", _P))


@dataclass(frozen=True, slots=True)
class Packed:
    """W (out, in) and b as `product` reads them. scales: of W's outputs, where it is rounded. These
    and b are there for all outputs of the panels."""

    shape: tuple[int, int]
    panels: Tensor
    scales: Tensor | None
    bias: Tensor | None

    @property
    def matrix(self) -> Matrix:
        """What C reads; it has to outlive that."""
        more = (None if x is None else x.data_ptr() for x in (self.scales, self.bias))
        return Matrix(self.panels.data_ptr(), *more)


class Kernels:
    """Sizes of a head are what 16 divides, all others what 8 divides, but for a product's.

    ValueError for what C would read wrongly.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)  # which the library keeps, with its argtypes
            function.argtypes, function.restype = arguments, _RESULTS.get(name)
        self._product, self._dots = library.product, library.dots
        self._attention = library.attention
        self._rms_norm, self._swiglu = library.rms_norm, library.swiglu
        self._rotate, self._entropy = library.rotate, library.entropy
        library.stay.argtypes = []
        self.stay = library.stay
        """As C has it; whoever runs whole passes by these kernels calls it."""
        self.layers = library.layers
        """As C has it; `stack` calls it."""
        self.ingest = library.ingest
        """As C has it; EAGLE-3's `Ingest` calls it."""
        self.chain = library.chain
        """As C has it; EAGLE-3's `Chain` calls it."""
        self.perceptron = library.perceptron
        """As C has it; the router's `Perceptron` calls it."""
        self._pages = Pages()

    def pack(self, weight: Tensor, bias: Tensor | None = None, *, rounded: bool = False) -> Packed:
        """(out, in), (out,) -> for `product`. bfloat16 must hold the weights, unless they may be
        rounded to eight bits; x is then as well."""
        outputs, inputs = weight.shape
        beside, filled = (8, -(-inputs // 32) * 32) if rounded else (16, inputs)
        room = -(-outputs // beside) * beside
        dtype = torch.int8 if rounded else torch.bfloat16
        padded = weight.new_zeros(room, filled, dtype=torch.float32 if rounded else dtype)
        padded[:outputs, :inputs] = weight
        scales = None
        if rounded:
            scales = torch.linalg.vector_norm(padded, torch.inf, 1).clamp_min_(1e-30) / 127
            padded.div_(scales[:, None]).round_()
            panels = padded.view(-1, 8, filled // 4, 4).transpose(1, 2)
        else:
            panels = padded.view(-1, 2, 8, inputs).permute(0, 3, 2, 1)
        kept = self._pages.take(*panels.shape, dtype=dtype).copy_(panels)
        if bias is not None:
            bias = torch.nn.functional.pad(bias.float(), (0, room - outputs))
        return Packed((outputs, inputs), kept, scales, bias)

    def product(self, packed: Packed, x: Tensor) -> Tensor:
        """x: (n, in) -> (n, out)."""
        outputs, inputs = packed.shape
        _require(x, (x.shape[0], inputs))
        x, y = x.contiguous(), x.new_empty(x.shape[0], outputs)
        self._product(
            ctypes.byref(packed.matrix), x.data_ptr(), y.data_ptr(),
            x.shape[0], inputs, outputs, torch.get_num_threads(),
        )  # fmt: skip
        return y

    def dots(self, weight: Tensor, x: Tensor) -> Tensor:
        """weight: (outputs, inputs), as it is; x: (n, inputs) -> (n, outputs)."""
        outputs, inputs = weight.shape
        for given in (weight, x):
            _require(given, (given.shape[0], inputs))
        weight, x = weight.contiguous(), x.contiguous()
        y = x.new_empty(x.shape[0], outputs)
        self._dots(
            weight.data_ptr(), x.data_ptr(), y.data_ptr(),
            x.shape[0], inputs, outputs, torch.get_num_threads(),
        )  # fmt: skip
        return y

    def attention(
        self, q: Tensor, keys: Tensor, values: Tensor, *, causal: bool, window: int | None
    ) -> Tensor:
        """As `layers.attention`, in one thread: q (n, heads, width); keys, values (1, kv_heads,
        length, width), length at least n."""
        (n, heads, width), (_, kv_heads, length, _) = q.shape, keys.shape
        _require(q, (n, heads, width), 16)
        for kept in (keys, values):
            _require(kept, (1, kv_heads, length, width))
        if length < n or heads % kv_heads:
            raise ValueError(f"{n} rows, {length} keys, {heads} heads of {kv_heads} do not fit")
        if keys.stride() != values.stride() or keys.stride()[2:] != (width, 1):
            keys, values = keys.contiguous(), values.contiguous()
        if q.stride()[1:] != (width, 1):
            q = q.contiguous()
        room, y = q.new_empty(length + 1, 4), q.new_empty(n, heads * width)
        self._attention(
            q.data_ptr(), keys.data_ptr(), values.data_ptr(), y.data_ptr(), room.data_ptr(),
            q.stride(0), keys.stride(1), n, heads, kv_heads, width, length, window or 0,
            causal, 1,
        )  # fmt: skip
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x: (..., size), weight: (size,)."""
        size = weight.shape[0]
        _require(weight, (size,))
        _require(x, (*x.shape[:-1], size), 8)
        weight, x = weight.contiguous(), x.contiguous()
        y = torch.empty_like(x)
        self._rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // size, size, eps)
        return y

    def entropy(self, logits: Tensor) -> float:
        """Of their softmax, in nats. logits: (size,)."""
        _require(logits, (logits.shape[0],), 8)
        logits = logits.contiguous()
        return float(self._entropy(logits.data_ptr(), logits.shape[0]))

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """(n, 2 * inner), gate first -> (n, inner), in one thread."""
        n, both = gate_up.shape
        _require(gate_up, (n, both), 16)
        gate_up = gate_up.contiguous()
        y = gate_up.new_empty(n, both // 2)
        self._swiglu(gate_up.data_ptr(), y.data_ptr(), n, both // 2, 1)
        return y

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: (n, heads, width); cos, sin: (n, 1, width). -> (n, heads, width)."""
        n, heads, width = x.shape
        _require(x, (n, heads, width), 16)
        for table in (cos, sin):
            _require(table, (n, 1, width))
        if x.stride()[1:] != (width, 1):
            x = x.contiguous()
        cos, sin, y = cos.contiguous(), sin.contiguous(), x.new_empty(n, heads, width)
        self._rotate(
            x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(),
            x.stride(0), n, heads, width,
        )  # fmt: skip
        return y


def _require(x: Tensor, shape: tuple[int, ...], divisor: int = 1) -> None:
    """divisor: of the last size."""
    if x.dtype != torch.float32 or x.shape != shape or shape[-1] % divisor:
        raise ValueError(f"{x.dtype} {tuple(x.shape)} is not float32 {shape}")


@cache
def kernels() -> Kernels | None:
    """None where they cannot be compiled; see `build`."""
    library = build([Path(__file__).with_name(name) for name in _SOURCES])
    return None if library is None else Kernels(library)
