"""EAGLE-3's slots as one call of C; see `ingest.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.kernels.cpu import Kernels, Matrix, kernels
from whiflash_engine.linear import Linear
from whiflash_engine.stack import Memory, Stack

_P, _N = ctypes.c_void_p, ctypes.c_long


@dataclass(frozen=True, slots=True)
class IngestParts:
    """picks: which of the `every` taps in a row of features are listened to. tap_norms: (picks,
    width), input_norm: (picks * width,), where there are such. embeddings: (target vocabulary,
    hidden); embed_norm, state_norm: (hidden,). adds_normed: the layer adds to the normed state."""

    picks: Sequence[int]
    every: int
    fc: Linear
    tap_norms: Tensor | None
    input_norm: Tensor | None
    embeddings: Tensor
    embed_norm: Tensor
    state_norm: Tensor
    adds_normed: bool


class _Fusing(ctypes.Structure):
    _fields_ = (
        ("fc", Matrix),
        *(
            (name, _P)
            for name in (
                "columns", "tap_norms", "input_norm", "embeddings", "embed_norm", "state_norm",
            )
        ),
        ("taps", _N), ("width", _N), ("adds_normed", _N),
    )  # fmt: skip


class Ingest:
    """What it reads of `parts` and of the stack has to stay where it is."""

    def __init__(self, own: Kernels, stack: Stack, parts: IngestParts) -> None:
        hidden, into = parts.fc.shape
        assert parts.fc.packed is not None and hidden == stack.shape.hidden
        self._own, self._stack, self._parts = own, stack, parts
        taps = len(parts.picks)
        self._width = width = into // taps  # of a tap
        self._row = into + 4 * hidden
        self._columns = (_N * taps)(*(pick * width for pick in parts.picks))
        tensors = (
            parts.tap_norms, parts.input_norm, parts.embeddings, parts.embed_norm, parts.state_norm
        )  # fmt: skip
        self._fusing = _Fusing(
            parts.fc.packed.matrix, ctypes.addressof(self._columns),
            *(None if x is None else x.data_ptr() for x in tensors),
            taps, width, parts.adds_normed,
        )  # fmt: skip

    def __call__(
        self, features: Tensor, tokens: Sequence[int], table: tuple[Tensor, Tensor], kv: KVCache,
        rows: int = 1,
    ) -> Tensor:  # fmt: skip
        """Write the slots behind the last one, for which kv has room; its length stays. features:
        (n, all taps * width), tokens: those behind them. -> (1, hidden), the state of the last.
        table: of `Rope`, for the slots. rows: how many of the last ones run the whole layer."""
        n, shape, threads = len(tokens), self._stack.shape, torch.get_num_threads()
        cos, sin = (part.contiguous() for part in table)
        if not (
            1 <= rows <= n == len(features) and features.stride(1) == 1
            and features.shape[1] == self._parts.every * self._width
            and cos.shape == sin.shape == (n, 1, shape.width)
            and {x.dtype for x in (features, cos, sin, kv.all)} == {torch.float32}
            and kv.all.shape == (1, 2, shape.kv_heads, kv.capacity, shape.width)
            and kv.length + n <= kv.capacity
            and all(0 <= token < len(self._parts.embeddings) for token in tokens)
        ):  # fmt: skip
            raise ValueError(f"{n} slots do not fit behind {kv.length} of {tuple(kv.all.shape)}")
        state = features.new_empty(1, shape.hidden)
        room = state.new_empty(n * self._row + self._stack.room(n, kv.length + n, threads))
        memory = Memory(kv.all.data_ptr(), kv.capacity, kv.length)
        self._own.ingest(
            self._stack.layers, ctypes.byref(shape), ctypes.byref(self._fusing),
            ctypes.byref(memory), features.data_ptr(), features.stride(0), (_N * n)(*tokens),
            cos.data_ptr(), sin.data_ptr(), state.data_ptr(), room.data_ptr(), n, rows, threads,
        )  # fmt: skip
        return state


def ingest(stack: Stack | None, parts: IngestParts) -> Ingest | None:
    """None where there are no kernels for this: see `Stack`. ValueError for parts that do not
    fit."""
    own = kernels()
    if own is None or stack is None or parts.fc.packed is None:
        return None
    tensors = [parts.tap_norms, parts.input_norm, parts.embeddings, parts.embed_norm]
    given = [x for x in (*tensors, parts.state_norm) if x is not None]
    if not all(x.dtype == torch.float32 and x.is_contiguous() for x in given):
        return None
    (hidden, into), taps = parts.fc.shape, len(parts.picks)
    width = into // taps
    if hidden % 8 or width % 8:
        return None
    sizes = [(taps, width), (into,), (len(parts.embeddings), hidden), (hidden,), (hidden,)]
    fits = all(
        x is None or x.shape == size
        for x, size in zip((*tensors, parts.state_norm), sizes, strict=True)
    )
    if not fits or into != taps * width or hidden != stack.shape.hidden:
        raise ValueError(f"{[tuple(x.shape) for x in given]} do not fit {parts.fc.shape}")
    if stack.shape.layers != 1 or stack.shape.into != 2 * hidden:
        raise ValueError("not a layer of EAGLE-3")
    return Ingest(own, stack, parts)
