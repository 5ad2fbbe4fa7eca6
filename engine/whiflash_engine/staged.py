"""Work on a stage in a few fixed shapes, each recorded once and started by one call.

What differs from call to call, tokens and the first of their positions, is one small tensor that
the work reads. Keys fill up to a power of two, and a mask hides what lies behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from whiflash_engine.cache import KVCache
from whiflash_engine.graphs import Capture, FixedWork
from whiflash_engine.layers import Rope, Sight, masked_attention
from whiflash_engine.stage import Stage

_MOST_KEYS: Final = 16384
"""Longer sequences would double much memory, where starting kernels is the smaller part."""


@dataclass(frozen=True, slots=True)
class Staged:
    """What lies on a stage, as the `Memory` of n rows, all of which look.

    layers: of `Stage`. places: (n,), the rows' positions. masks: of each layer, as of `Sight`.
    """

    cos: Tensor
    sin: Tensor
    layers: Sequence[Tensor]
    places: Tensor
    masks: Sequence[Tensor]

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (keys, values), mask = self.layers[index], self.masks[index]
        keys.index_copy_(1, self.places, k.transpose(0, 1))
        values.index_copy_(1, self.places, v.transpose(0, 1))
        seen = mask.shape[1]
        return masked_attention(q, keys[None, :, :seen], values[None, :, :seen], mask)


Run = Callable[[Tensor, Staged], tuple[Tensor, ...]]
"""(n,) ids and their memory -> what comes out; see `FixedWork`."""


class StagedWork:
    """sights: of each layer. group: query heads per key head. widest: the most rows of `run`.

    lock: of its `Capture`.
    """

    def __init__(
        self, stage: Stage, rope: Rope, sights: Sequence[Sight], group: int, widest: int,
        capture: Capture, run: Run,
    ) -> None:  # fmt: skip
        self.lock = capture.lock
        self.stage, self._rope, self._capture = stage, rope, capture
        self._run = partial(_run, run, sights, group)
        # the first position, and the tokens
        self._given = torch.zeros(1 + widest, dtype=torch.long, device=stage.device)
        self._recorded: dict[tuple[int, int], FixedWork] = {}

    def has_room(self, cache: KVCache) -> bool:
        return cache.length + len(self._given) <= _MOST_KEYS

    def __call__(self, cache: KVCache, tokens: Sequence[int]) -> tuple[Tensor, ...]:
        """For tokens at the positions behind the cache's. What they write stays on the stage,
        unless it `leave`s that."""
        n, start = len(tokens), cache.length
        keys = Stage.bucket(start + n)
        if keys > self.stage.room:
            self._recorded.clear()  # it holds the old stage
            self.stage.grow(keys)
        self.stage.enter(cache, n)
        given = self._given[: 1 + n]
        given.copy_(torch.tensor([start, *tokens]))
        return self._work(given, keys)()

    def _work(self, given: Tensor, keys: int) -> FixedWork:
        shape = (len(given), keys)
        if shape not in self._recorded:
            # a table that grows later is another tensor; this one stays
            run = partial(self._run, given, self._rope.table(0, keys), self.stage.layers)
            self._recorded[shape] = self._capture(run)
        return self._recorded[shape]


def _run(
    run: Run, sights: Sequence[Sight], group: int,
    given: Tensor, table: tuple[Tensor, Tensor], layers: Sequence[Tensor],
) -> tuple[Tensor, ...]:  # fmt: skip
    start, ids = given[:1], given[1:]
    places = start + torch.arange(len(ids), device=ids.device)
    cos, sin = (part.index_select(0, places) for part in table)
    keys, made = len(table[0]), dict[tuple[bool, int | None], Tensor]()
    for sight in sights:  # most are alike
        if (sight.causal, sight.window) not in made:
            made[sight.causal, sight.window] = sight.mask_at(places, keys, group, cos)
    masks = [made[sight.causal, sight.window] for sight in sights]
    return run(ids, Staged(cos, sin, layers, places, masks))
