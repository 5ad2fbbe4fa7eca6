"""Preallocated KV of one sequence. Whoever owns it is the only one who crops it."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of `layers` layers, with room for `capacity` positions to begin with.

    Writes go to positions length.., where `reserve` has made room; `advance` makes them
    count, once all layers have written. `crop` is absolute and idempotent.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, kv_heads, capacity, head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._keys.shape[2]

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def reserve(self, count: int) -> None:
        """Make room for `count` more positions.

        Whoever knows how far a sequence will go says so at the start, and nothing is ever
        copied; one that is taken up again with a longer prompt grows here.
        """
        needed = self._length + count
        if needed > self.capacity:
            size = max(needed, self.capacity * 3 // 2)
            self._keys, self._values = (self._grown(x, size) for x in (self._keys, self._values))

    def _grown(self, stored: Tensor, capacity: int) -> Tensor:
        layers, heads, _, width = stored.shape
        grown = stored.new_empty(layers, heads, capacity, width)
        grown[:, :, : self._length] = stored[:, :, : self._length]
        return grown

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys, values: (n, kv_heads, head_dim), stored at positions length..length+n-1.

        Returns views (kv_heads, length + n, head_dim) of all that the layer holds then.
        """
        end = self._length + keys.shape[0]
        self._keys[layer, :, self._length : end] = keys.transpose(0, 1)
        self._values[layer, :, self._length : end] = values.transpose(0, 1)
        return self._keys[layer, :, :end], self._values[layer, :, :end]

    def view(self, layer: int) -> tuple[Tensor, Tensor]:
        """(kv_heads, length, head_dim) twice."""
        return self._keys[layer, :, : self._length], self._values[layer, :, : self._length]

    def advance(self, count: int) -> None:
        """The `count` positions just written now count."""
        assert self._length + count <= self.capacity, "reserve before you write"
        self._length += count

    def crop(self, length: int) -> None:
        """Forget positions >= length."""
        self._length = min(self._length, length)
