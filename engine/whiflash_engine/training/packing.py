"""Conversations that begin alike, as one sequence: what they share is run once.

Requests to the same tools differ in a line or two behind a tool list of hundreds of tokens. In a
pack every conversation sees the shared beginning and itself, at the positions that it would have
alone, so that it is learned as it would be alone at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from whiflash_engine.training.chat import Taught
from whiflash_engine.training.llama import Layout


@dataclass(frozen=True)
class Pack:
    """One training sequence. Per token: its id, whether it is learned, its position, and the
    conversation it belongs to (0: the shared beginning)."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]
    positions: tuple[int, ...]
    branch: tuple[int, ...]


def pack(group: Sequence[Taught]) -> Pack:
    """The conversations behind their longest common beginning. At least one; what is learned is
    never shared, nor the token before it, which predicts it."""
    limit = min(one.learn.index(True) for one in group) - 1
    columns = zip(*(one.ids[:limit] for one in group), strict=True)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    first = group[0]
    ids, learn = list(first.ids[:shared]), list(first.learn[:shared])
    positions, branch = list(range(shared)), [0] * shared
    for number, one in enumerate(group, start=1):
        ids += one.ids[shared:]
        learn += one.learn[shared:]
        positions += range(shared, len(one.ids))
        branch += [number] * (len(one.ids) - shared)
    return Pack(tuple(ids), tuple(learn), tuple(positions), tuple(branch))


def pad(packs: Sequence[Pack]) -> tuple[Tensor, Tensor, Layout | None]:
    """int64 ids [B,T], bool learn [B,T], and the layout: None where every sequence is a single
    conversation, for which causal attention is all there is."""
    width = max(len(one.ids) for one in packs)

    def rows(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in values])

    ids = rows([one.ids for one in packs], 0)
    learn = rows([one.learn for one in packs], 0).bool()
    if all(max(one.branch) <= 1 for one in packs):
        return ids, learn, None
    branch = rows([one.branch for one in packs], -1)
    kin = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    before = torch.ones(width, width, dtype=torch.bool).tril()
    positions = rows([one.positions for one in packs], 0)
    return ids, learn, Layout(positions, (kin & before)[:, None])
