"""Preallocated KV of one sequence. Whoever owns it is the only one who crops it."""

from __future__ import annotations

import torch
from torch import Tensor

from whiflash_engine.errors import ConfigError


class KVCache:
    """Keys and values of `layers` layers for up to `capacity` positions.

    Writes go to positions length..; `advance` makes them count, once all layers have
    written. `crop` is absolute and idempotent.
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

    def reserve(self, count: int) -> None:
        """Raise unless `count` more positions fit."""
        if self._length + count > self.capacity:
            total = self._length + count
            raise ConfigError("positions", total, f"the cache holds {self.capacity}")

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
        self.reserve(count)
        self._length += count

    def crop(self, length: int) -> None:
        """Forget positions >= length."""
        self._length = min(self._length, length)
