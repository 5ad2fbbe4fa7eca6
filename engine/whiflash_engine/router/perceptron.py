"""The network of a router: one hidden layer.

So small a network is soon computed and long in coming: between two rounds the target's weights have
passed through the caches, so that every library it goes through is read from memory again. Hence
one call of C, without numpy's or torch's operators where it can be done without. Loading a router
compiles the kernels, also where the target does not use them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whiflash_engine.kernels.cpu import kernels

Array: TypeAlias = NDArray[np.float32]


class Perceptron:
    """x -> second @ gelu(first @ x + first_bias) + second_bias; float32, GELU by tanh.

    Not for several threads at once. ValueError for sizes that do not fit.
    """

    def __init__(self, first: Array, first_bias: Array, second: Array, second_bias: Array) -> None:
        """first: (inner, in), second: (out, inner), biases (inner,) and (out,)."""
        (inner, inputs), outputs = first.shape, len(second)
        found = [w.shape for w in (first_bias, second, second_bias)]
        if found != [(inner,), (outputs, inner), (outputs,)]:
            raise ValueError(f"{first.shape} and {found} are no perceptron")
        self.first, self.first_bias, self.second, self.second_bias = weights = [
            np.ascontiguousarray(w, np.float32) for w in (first, first_bias, second, second_bias)
        ]
        self._addresses = [w.ctypes.data for w in weights]
        self._inputs, self._inner, self._outputs = inputs, inner, outputs
        self._more = (ctypes.c_float * inputs)()
        self._room = (ctypes.c_float * (outputs + inner + 7))()  # as the kernel asks for
        own = kernels()
        self._kernel = None if own is None else own.perceptron

    def __call__(self, x: Tensor, more: Sequence[float] = ()) -> list[float]:
        """x, more: together the inputs -> the outputs."""
        size = len(x)
        if size + len(more) != self._inputs or x.ndim != 1:
            raise ValueError(f"{tuple(x.shape)} and {len(more)} are not ({self._inputs},)")
        if x.dtype != torch.float32 or not x.is_cpu or not x.is_contiguous():
            x = x.to("cpu", torch.float32).contiguous()
        if self._kernel is None:
            return self._by_numpy(np.concatenate((x.numpy(force=True), more), dtype=np.float32))
        self._more[: len(more)] = more
        self._kernel(
            x.data_ptr(), self._more, *self._addresses, self._room,
            size, len(more), self._inner, self._outputs,
        )  # fmt: skip
        found: list[float] = self._room[: self._outputs]
        return found

    def _by_numpy(self, x: Array) -> list[float]:
        h = self.first @ x + self.first_bias
        h *= 0.5 + 0.5 * np.tanh(h * (0.7978845608 + 0.0356774081 * h * h))
        found: list[float] = (self.second @ h + self.second_bias).tolist()
        return found
