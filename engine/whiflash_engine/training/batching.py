"""Batches of similar length, in random order: little padding, and no order to learn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
_POOL = 16
"""Batches that are sorted together."""


def epoch_batches(
    items: Sequence[T], size: int, seed: int, epoch: int, length: Callable[[T], tuple[int, ...]]
) -> list[list[T]]:
    """All items once; the same for the same arguments."""
    rng = random.Random(f"{seed}/{epoch}")
    order = list(items)
    rng.shuffle(order)
    batches: list[list[T]] = []
    for start in range(0, len(order), size * _POOL):
        pool = sorted(order[start : start + size * _POOL], key=length)
        packs = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(packs)
        batches += packs
    return batches
