"""Preallocated KV of one sequence. Whoever owns it is the only one who crops it."""

from __future__ import annotations

from collections.abc import Sequence

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
        shape = (layers, 2, kv_heads, capacity, head_dim)  # keys, values
        self._kv = torch.empty(shape, dtype=dtype, device=device)
        self._length = self._written = self._unchanged = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._kv.shape[3]

    @property
    def all(self) -> Tensor:
        """(layers, 2, kv_heads, capacity, head_dim): keys, then values, of what is written and of
        the room behind."""
        return self._kv

    @property
    def unchanged(self) -> int:
        """Positions that have been as they are since the last `mark`."""
        return self._unchanged

    @property
    def nbytes(self) -> int:
        """What it takes: on a CPU room that was never written takes nothing yet."""
        taken = self._written if self._kv.device.type == "cpu" else self.capacity
        return self._kv.nbytes // self.capacity * taken

    def reserve(self, count: int) -> None:
        """Make room for `count` more positions.

        Whoever knows how far a sequence will go says so at the start, and nothing is ever
        copied; one that is taken up again with a longer prompt grows here.
        """
        needed = self._length + count
        if needed > self.capacity:
            size = max(needed, self.capacity * 3 // 2)
            grown = self._kv.new_empty(*self._kv.shape[:3], size, self._kv.shape[4])
            grown[:, :, :, : self._length] = self._kv[:, :, :, : self._length]
            self._kv = grown

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys, values: (n, kv_heads, head_dim), stored at positions length..length+n-1.

        Returns views (1, kv_heads, length + n, head_dim) of all that the layer holds then.
        """
        end = self._length + keys.shape[0]
        for i, new in enumerate((keys, values)):
            self._kv[layer, i, :, self._length : end] = new.transpose(0, 1)
        return self._kv[layer, :1, :, :end], self._kv[layer, 1:, :, :end]

    def places(self, count: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """All views that a pass over `count` new positions needs, made at once.

        Per layer (2 * kv_heads, count, head_dim), where its new keys and, after them, values
        belong; and what it holds then, (1, kv_heads, length + count, head_dim): keys of layer 0,
        values of layer 0, keys of layer 1, ...
        """
        end = self._length + count
        new = self._kv.flatten(1, 2)[:, :, self._length : end]
        return new.unbind(), self._kv[:, :, :, :end].flatten(0, 1)[:, None].unbind()

    def advance(self, count: int) -> None:
        """The `count` positions just written now count."""
        assert self._length + count <= self.capacity, "reserve before you write"
        self._length += count
        self._written = max(self._written, self._length)

    def crop(self, length: int) -> None:
        """Forget positions >= length."""
        self._length = min(self._length, length)
        self._unchanged = min(self._unchanged, self._length)

    def mark(self) -> None:
        """From here on `unchanged` tells how much of what is held now stays."""
        self._unchanged = self._length

    def span(self, start: int, stop: int) -> Tensor:
        """A view of these positions of all layers, (layers, 2, kv_heads, stop - start, head_dim),
        also of such as are not written yet."""
        return self._kv[:, :, :, start:stop]
