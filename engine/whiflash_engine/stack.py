"""A network's decoder layers as one call of C; see `layers.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.kernels.cpu import Kernels, Matrix, kernels
from whiflash_engine.layers import MOST_ROWS, RMSNorm, Sight
from whiflash_engine.linear import Linear

_P, _N = ctypes.c_void_p, ctypes.c_long
Product = Callable[[Tensor], Tensor]
"""A `Linear`, or what does without its kernel."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """x += o(attention(rotate(qkv(norm_in(x))))), x += down(swiglu(gate_up(norm_mlp(x)))); q and k
    of a head go through their norms where there are any."""

    norm_in: RMSNorm
    qkv: Product
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    o: Product
    norm_mlp: RMSNorm
    gate_up: Product
    down: Linear
    sight: Sight


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _P) for name in ("norm_in", "norm_mlp", "q_norm", "k_norm")),
        *((name, Matrix) for name in ("qkv", "o", "gate_up", "down")),
        ("window", _N), ("causal", _N),
    )  # fmt: skip


class Shape(ctypes.Structure):
    """As C has it."""

    _fields_ = (
        *(
            (name, _N)
            for name in ("layers", "hidden", "inner", "heads", "kv_heads", "width", "into")
        ),
        ("eps", ctypes.c_float),
    )


class Memory(ctypes.Structure):
    """As C has it."""

    _fields_ = (("kv", _P), ("capacity", _N), ("length", _N))


class Stack:
    """The layers of one network. What it reads of `parts` has to stay where it is."""

    def __init__(
        self, own: Kernels, parts: Sequence[LayerParts], into: int, heads: tuple[int, int, int]
    ) -> None:
        """into: what the first qkv reads. heads: of queries, of keys, and their width."""
        (hidden, inner), (count, kv_heads, width) = parts[0].down.shape, heads
        self._own, self._parts = own, tuple(parts)
        self.layers = (_Layer * len(parts))(*(_Layer(**_fields(part)) for part in parts))
        eps = parts[0].norm_in.eps
        self.shape = Shape(len(parts), hidden, inner, *heads, into, eps)
        self._row = 3 * inner + 2 * hidden + (3 * count + 2 * kv_heads) * width

    def room(self, rows: int, length: int, threads: int) -> int:
        """Numbers that C wants room for, of a pass whose last row stands at `length` - 1."""
        return rows * self._row + 4 * threads * (length + 1)

    def __call__(
        self, x: Tensor, table: tuple[Tensor, Tensor], cache: KVCache,
        features: Tensor, taps: Mapping[int, int], given: Tensor | None = None,
        rows: int | None = None,
    ) -> Tensor:  # fmt: skip
        """x: (n, hidden), n at most `MOST_ROWS`, at the positions behind the cache's length, for
        which it has room; -> what the last layer makes of the last `rows`, None of all: of the
        others it makes keys and values alone. Writes those of all of them there.

        table: of `Rope`. taps: boundary -> column of features, (n, columns), where the stream goes
        that enters this layer, or leaves the last one. given: (n, inputs of the first qkv), what
        that reads, where it is not norm_in(x).
        """
        n, s, held, threads = x.shape[0], self.shape, cache.all, torch.get_num_threads()
        wanted = n if rows is None else rows
        size = (s.layers, 2, s.kv_heads, cache.capacity, s.width)
        fits = held.shape == size and n <= min(MOST_ROWS, cache.capacity - cache.length)
        fits = fits and 0 <= wanted <= n
        cos, sin = (part.contiguous() for part in table)
        read = x if given is None else given.contiguous()
        fits = fits and x.shape == (n, s.hidden) and read.shape == (n, s.into)
        last = max(taps.values(), default=-s.hidden) + s.hidden
        fits = fits and features.stride(1) == 1 and features.shape[0] >= n
        fits = fits and last <= features.shape[1]
        if not (fits and cos.shape == sin.shape == (n, 1, s.width)):
            raise ValueError(f"{n} rows do not fit behind {cache.length} of {tuple(held.shape)}")
        if {t.dtype for t in (x, read, held, cos, sin, features)} != {torch.float32}:
            raise ValueError("not all is float32")
        out, length = x.clone(memory_format=torch.contiguous_format), cache.length
        room = x.new_empty(self.room(n, length + n, threads))
        places = (_N * (s.layers + 1))(*(taps.get(i, -1) for i in range(s.layers + 1)))
        memory = Memory(held.data_ptr(), cache.capacity, length)
        self._own.layers(
            self.layers, ctypes.byref(s), ctypes.byref(memory), out.data_ptr(),
            None if given is None else read.data_ptr(), cos.data_ptr(), sin.data_ptr(),
            room.data_ptr(), places, features.data_ptr(), features.stride(0), n, wanted, threads,
        )  # fmt: skip
        return out[n - wanted :]


def _fields(part: LayerParts) -> dict[str, object]:
    norms = {name: getattr(part, name) for name in ("norm_in", "norm_mlp", "q_norm", "k_norm")}
    linears = {name: getattr(part, name) for name in ("qkv", "o", "gate_up", "down")}
    return {
        **{name: norm and norm.weight.data_ptr() for name, norm in norms.items()},
        **{name: linear.packed.matrix for name, linear in linears.items()},
        "window": part.sight.window or 0, "causal": part.sight.causal,
    }  # fmt: skip


def stack(parts: Sequence[LayerParts], heads: tuple[int, int, int]) -> Stack | None:
    """heads: of queries, of keys, and their width. None where there are no kernels for this: see
    `Kernels` and `Linear`. ValueError for parts that do not fit each other."""
    own, (hidden, inner) = kernels(), parts[0].down.shape
    products = [product for p in parts for product in (p.qkv, p.o, p.gate_up, p.down)]
    linears = [one for one in products if isinstance(one, Linear) and one.packed is not None]
    norms = [n for p in parts for n in (p.norm_in, p.norm_mlp, p.q_norm, p.k_norm) if n]
    plain = all(n.weight.dtype == torch.float32 and n.eps == norms[0].eps for n in norms)
    fits = len(linears) == len(products) and plain
    if own is None or not fits or heads[2] % 16 or hidden % 8 or inner % 8:
        return None
    q, kv = heads[0] * heads[2], heads[1] * heads[2]
    into = [linears[0].shape[1], *[hidden] * (len(parts) - 1)]
    shapes = [
        s
        for i in into
        for s in ((q + 2 * kv, i), (hidden, q), (2 * inner, hidden), (hidden, inner))
    ]
    if [one.shape for one in linears] != shapes:
        raise ValueError(f"{[one.shape for one in linears]} should be {shapes}")
    for p in parts:
        sizes = {p.norm_in: hidden, p.norm_mlp: hidden, p.q_norm: heads[2], p.k_norm: heads[2]}
        if any(norm is not None and norm.weight.shape != (n,) for norm, n in sizes.items()):
            raise ValueError(f"norms should have the sizes {[*sizes.values()]}")
    return Stack(own, parts, linears[0].shape[1], heads)
