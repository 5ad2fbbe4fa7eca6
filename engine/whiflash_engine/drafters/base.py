"""What the loop needs from a drafter.

A drafter holds weights and nothing of a sequence. Its state for one sequence is a
`DraftState`: private KV and one watermark, the number of positions it has ingested.
An idle drafter does nothing at all; when it is picked, it catches up in one batch
(Lazy Catch-up, WhiFlash arXiv 2606.07710).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whiflash_engine.features import FeatureLog
from whiflash_engine.law import suits_numpy


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens and, when sampling, the distributions they were drawn from.

    tokens: target ids, at positions m+1.. where m is the bonus token's position.
    q: (len(tokens), vocab) float32 rows that sum to 1, the exact distribution that
        tokens[i] was drawn from given the earlier ones; None means one-hot
        (deterministic proposals: greedy drafting, forced tokens).
    doubt: where the drafter ended before it was told to: the chance, in its own opinion, that
        the token it left out would have passed once all others had.
    """

    tokens: tuple[int, ...]
    q: Tensor | None = None
    doubt: float | None = None


class DraftState(Protocol):
    """A drafter's private memory of one sequence."""

    @property
    def watermark(self) -> int:
        """Slots 0..watermark-1 are ingested."""
        ...

    @property
    def nbytes(self) -> int:
        """What it holds in memory, about."""
        ...

    def crop(self, length: int) -> None:
        """Forget slots >= length. Absolute and idempotent."""
        ...


class Chooser(Protocol):
    """Turns drafter logits into draft tokens; the sampler implements it."""

    @property
    def greedy(self) -> bool:
        """Whether `choose` gives the likeliest tokens, the first among equals, and nothing else."""
        ...

    def choose(self, logits: Tensor, position: int, start: int) -> tuple[list[int], Tensor | None]:
        """logits: (n, draft vocab) -> an index into each row, and the rows' distributions (None
        if greedy). position: of the first of the tokens; the others follow it. start: of the
        draft that they are part of."""
        ...


class Drafter(Protocol):
    """Proposes the tokens that follow the bonus token."""

    @property
    def max_draft(self) -> int:
        """The most tokens it can propose in a round (K)."""
        ...

    def new_state(self, capacity: int) -> DraftState: ...

    def ingest(self, state: DraftState, log: FeatureLog, tokens: Sequence[int]) -> None:
        """Bring the watermark to log.length.

        tokens: all committed ids x_0..x_m, bonus last; log covers 0..m-1.
        """
        ...

    def propose(
        self,
        state: DraftState,
        tokens: Sequence[int],
        count: int,
        chooser: Chooser,
        known: Sequence[int] = (),
        floor: float = 0.0,
    ) -> Proposal:
        """Up to `count` tokens after tokens[-1]; needs watermark == len(tokens) - 1.

        known: tokens that are certain to come next, such as those a grammar forces. The
        proposal begins with them, as far as `count` reaches, and goes on from there. floor: it
        ends before the first token with which the chance that all of it passes would fall
        below that, but not before one of its own; see `Ending`.
        Leaves nothing behind in `state` that a later round could see.
        """
        ...


def scatter(q: Tensor | None, ids: Tensor | None, vocab_size: int) -> Tensor | None:
    """(n, draft vocab) distributions -> (n, vocab_size) ones, over the target's vocabulary.

    q: None where the choice was deterministic, and stays so. ids: target id of each draft id,
    None when the vocabularies are the same.
    """
    if q is None or ids is None:
        return q
    if suits_numpy(q):
        spread = np.zeros((len(q), vocab_size), np.float32)
        spread[:, ids.numpy(force=True)] = q.numpy(force=True)
        return torch.from_numpy(spread)
    return q.new_zeros(len(q), vocab_size).index_copy_(1, ids, q)


def certain(known: Sequence[int], q: Tensor | None) -> Tensor | None:
    """q (n, V) of drawn tokens, with one-hot rows for the known ones before them."""
    if q is None or not known:
        return q
    if suits_numpy(q):
        rows = np.zeros((len(known) + len(q), q.shape[1]), np.float32)
        rows[np.arange(len(known)), known] = 1.0
        rows[len(known) :] = q.numpy(force=True)
        return torch.from_numpy(rows)
    ids = torch.tensor(known, device=q.device)
    return torch.cat([F.one_hot(ids, q.shape[1]).to(q.dtype), q])
