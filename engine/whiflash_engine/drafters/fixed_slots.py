"""EAGLE-3's slots in fixed shapes: one, as a draft adds them, or as many as a round commits.

The slots that fill up a shape stand behind the others and are never copied to the sequence's
cache. All run the whole layer, which costs nothing at these widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.checkpoints.eagle3 import Eagle3Config
from whiflash_engine.drafters.eagle3_layer import Eagle3Layer
from whiflash_engine.graphs import Capture
from whiflash_engine.layers import Rope, Sight
from whiflash_engine.stage import Stage
from whiflash_engine.staged import Staged, StagedWork
from whiflash_engine.target.base import Target

WIDTHS: Final = (1, 16)


class FixedSlots:
    """Several threads may use it at once, but for one cache each."""

    def __init__(
        self, config: Eagle3Config, layer: Eagle3Layer, rope: Rope, target: Target, capture: Capture
    ) -> None:
        c, kind, device = config, target.dtype, target.device
        self._g = torch.zeros(WIDTHS[-1], c.hidden_size, dtype=kind, device=device)
        stage = Stage(1, c.num_kv_heads, c.head_dim, kind, device)
        group, run = c.num_heads // c.num_kv_heads, partial(_run, layer, self._g)
        self._work = StagedWork(stage, rope, [Sight()], group, WIDTHS[-1], capture, run)

    def takes(self, n: int, kv: KVCache) -> bool:
        """Whether n slots more are so few."""
        return n <= WIDTHS[-1] and self._work.has_room(kv)

    def __call__(self, kv: KVCache, g: Tensor, tokens: Sequence[int]) -> Tensor:
        """Add the slots (g[i], tokens[i]) to a cache that has room; output state of the last.

        g: (n, hidden) -> (1, hidden)."""
        n = len(tokens)
        width = next(width for width in WIDTHS if width >= n)
        with self._work.lock:
            self._g[:n].copy_(g)
            if n < width:
                self._g[n:width] = 0
            (y,) = self._work(kv, [*tokens, *[tokens[-1]] * (width - n)])
            self._work.stage.leave(kv, n)
            return y[n - 1 : n].clone()  # the next call overwrites it


def _run(layer: Eagle3Layer, g: Tensor, ids: Tensor, memory: Staged) -> tuple[Tensor, ...]:
    n = len(ids)
    return (layer(ids, g[:n], memory, n),)
