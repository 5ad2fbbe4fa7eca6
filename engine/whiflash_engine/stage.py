"""Keys and values at addresses that stay, where the caches of sequences appear in turn.

Whoever reads what lies at fixed addresses cannot read every sequence's own cache. So the sequence
at hand is copied to the stage, once; from then on only what is new of it, to and fro.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache

_LEAST = 512
_ROOM = 2048  # most sequences never need more, and what is recorded of a stage goes when it grows


class Stage:
    """Room for one cache of this geometry; none to begin with."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (layers, 2, kv_heads, 0, head_dim)  # as `KVCache` has it
        self._kv = torch.zeros(self._shape, dtype=dtype, device=device)
        self._filled = 0  # behind it all is zero
        self._guest: weakref.ref[KVCache] | None = None

    @property
    def room(self) -> int:
        return self._kv.shape[3]

    @property
    def device(self) -> torch.device:
        return self._kv.device

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """Of each layer (2, kv_heads, room, head_dim): its keys, its values. To be asked for anew
        after `grow`."""
        return self._kv.unbind()

    @staticmethod
    def bucket(positions: int) -> int:
        """Few different sizes, so that little has to be recorded: the next power of two."""
        return max(_LEAST, 1 << (positions - 1).bit_length())

    def grow(self, room: int) -> None:
        """Make room for so many positions, or more; nothing is kept."""
        self._guest = None
        self._filled = 0
        self._kv = self._kv.new_zeros(self._shape)  # the old one goes before the new one comes
        self._kv = self._kv.new_zeros(*self._shape[:3], max(room, _ROOM), self._shape[4])

    def enter(self, cache: KVCache, count: int) -> None:
        """All that the cache holds is there then, `count` positions that are about to be written
        behind it, and zeros in the rest: what is masked still takes part in sums, with weight 0,
        and must not be one of the infinities or NaNs of another sequence."""
        same = self._guest is not None and self._guest() is cache
        length, known = cache.length, cache.unchanged if same else 0
        self._guest = None  # whatever breaks off here is done again
        if known < length:
            self._kv[:, :, :, known:length] = cache.span(known, length)
        if length + count < self._filled:
            self._kv[:, :, :, length + count : self._filled] = 0
        self._filled = length + count
        cache.mark()
        self._guest = weakref.ref(cache)

    def leave(self, cache: KVCache, count: int) -> None:
        """The `count` positions that were written behind the cache's length are the cache's."""
        end = cache.length + count
        cache.span(cache.length, end).copy_(self._kv[:, :, :, cache.length : end])
        cache.advance(count)
        cache.mark()
