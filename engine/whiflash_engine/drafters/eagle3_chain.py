"""EAGLE-3's greedy chain as one call of C; see `chain.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.drafters.vocabulary import ContextWords
from whiflash_engine.kernels.cpu import Kernels, Matrix, kernels
from whiflash_engine.linear import Linear
from whiflash_engine.stack import Memory, Shape, Stack

_P, _N = ctypes.c_void_p, ctypes.c_long


@dataclass(frozen=True, slots=True)
class ChainParts:
    """embeddings: (target vocabulary, hidden). norms: of an embedding, of the state that is fed
    back, and before the head, (hidden,) each. ids: what the head's outputs stand for, None for
    themselves. feeds_normed: the state that is fed back is what the head reads. adds_normed: the
    layer adds to the normed state."""

    embeddings: Tensor
    norms: tuple[Tensor, Tensor, Tensor]
    head: Linear
    ids: Sequence[int] | None
    feeds_normed: bool
    adds_normed: bool


class _Drafter(ctypes.Structure):
    _fields_ = (
        ("layer", _P), ("shape", ctypes.POINTER(Shape)),
        *((name, _P) for name in ("embeddings", "embed_norm", "state_norm", "out_norm")),
        ("head", Matrix), ("ids", _P),
        ("outputs", _N), ("feeds_normed", _N), ("adds_normed", _N),
    )  # fmt: skip


class _Words(ctypes.Structure):
    _fields_ = (("rows", _P), ("ids", _P), ("count", _N))


class Chain:
    """What it reads of `parts` and of the stack has to stay where it is."""

    def __init__(self, own: Kernels, stack: Stack, parts: ChainParts) -> None:
        outputs = parts.head.shape[0]
        self._own, self._stack, self._parts = own, stack, parts
        self._ids = (_N * outputs)(*(range(outputs) if parts.ids is None else parts.ids))
        packed = parts.head.packed
        assert packed is not None
        self._drafter = _Drafter(
            ctypes.addressof(stack.layers), ctypes.pointer(stack.shape),
            *(x.data_ptr() for x in (parts.embeddings, *parts.norms)),
            packed.matrix, ctypes.addressof(self._ids),
            outputs, parts.feeds_normed, parts.adds_normed,
        )  # fmt: skip

    def __call__(
        self, state: Tensor, kv: KVCache, table: tuple[Tensor, Tensor], words: ContextWords,
        known: Sequence[int], count: int, floor: float = 0.0,
    ) -> tuple[tuple[int, ...], float | None]:  # fmt: skip
        """`count` tokens, the known ones first, or fewer where they end at the floor, and the doubt
        then; see `Proposal`. state: (1, hidden), of the newest slot. kv: has room for as many
        slots, and is as long afterwards as before. table: of `Rope`, for them."""
        cos, sin = (part.contiguous() for part in table)
        shape, threads, length = self._stack.shape, torch.get_num_threads(), kv.length
        if not (
            state.shape == (1, shape.hidden) and cos.shape == sin.shape == (count, 1, shape.width)
            and {x.dtype for x in (state, cos, sin, kv.all, words.rows)} == {torch.float32}
            and kv.all.shape == (1, 2, shape.kv_heads, kv.capacity, shape.width)
            and length + count <= kv.capacity and len(known) <= count
            and all(0 <= token < len(self._parts.embeddings) for token in known)
        ):  # fmt: skip
            raise ValueError(f"{count} slots do not fit behind {length} of {tuple(kv.all.shape)}")
        rows, ids = words.rows, (_N * len(words.ids))(*words.ids)
        most = max(self._parts.head.shape[0], len(ids), shape.hidden)
        size = 3 * shape.hidden + most + self._stack.room(1, length + count, threads)
        room = state.new_empty(size)
        found = (_N * count)(*known)
        state = state.clone(memory_format=torch.contiguous_format)
        more = _Words(rows.data_ptr(), ctypes.addressof(ids), len(ids))
        memory, doubt = Memory(kv.all.data_ptr(), kv.capacity, length), ctypes.c_float(-1.0)
        made = self._own.chain(
            ctypes.byref(self._drafter), ctypes.byref(more), ctypes.byref(memory), state.data_ptr(),
            cos.data_ptr(), sin.data_ptr(), room.data_ptr(), found, len(known), count,
            floor, ctypes.byref(doubt), threads,
        )  # fmt: skip
        return tuple(found[:made]), None if doubt.value < 0 else doubt.value


def chain(stack: Stack | None, parts: ChainParts) -> Chain | None:
    """None where there are no kernels for this: see `Stack`. ValueError for parts that do not
    fit."""
    own = kernels()
    if own is None or stack is None or parts.head.packed is None:
        return None
    hidden, outputs = stack.shape.hidden, parts.head.shape[0]
    tensors = (parts.embeddings, *parts.norms)
    if not all(x.dtype == torch.float32 and x.is_contiguous() for x in tensors):
        return None
    fits = (
        parts.head.packed.bias is None
        and parts.head.shape[1] == parts.embeddings.shape[1] == hidden
    )
    fits = (
        fits and all(x.shape == (hidden,) for x in parts.norms) and stack.shape.into == 2 * hidden
    )
    ids = range(outputs) if parts.ids is None else parts.ids
    fits = fits and stack.shape.layers == 1 and len(ids) == outputs
    if not fits or not all(0 <= one < len(parts.embeddings) for one in ids):
        raise ValueError(f"{[tuple(x.shape) for x in tensors]}, {parts.head.shape} are no drafter")
    return Chain(own, stack, parts)
