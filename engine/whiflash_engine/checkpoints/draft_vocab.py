"""The reduced vocabulary of a drafter: which target ids its logits stand for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from whiflash_engine.errors import CheckpointError


def draft_ids(
    where: Path, d2t: Tensor | None, t2d: Tensor | None, *, vocab: int, draft_vocab: int
) -> Tensor | None:
    """(draft_vocab,) int64 absolute target ids, or None if the drafter speaks all of them.

    `d2t[j]` is published as the offset id(j) - j, by some converters as id(j) itself; `t2d`
    marks the chosen ids, which the drafter numbers in ascending order, so it tells the two
    apart. Without it the published form (offset) is taken if it makes sense.
    Raises CheckpointError where neither reading gives distinct ids of the target.
    """
    if draft_vocab > vocab:
        raise CheckpointError(where, f"draft vocabulary {draft_vocab} exceeds the target's {vocab}")
    if d2t is None and t2d is None and draft_vocab == vocab:
        return None
    identity = torch.arange(draft_vocab)
    chosen = None if t2d is None else _chosen(where, t2d, vocab=vocab, draft_vocab=draft_vocab)
    if d2t is None:
        if chosen is None:
            raise CheckpointError(
                where, f"lacks tensor 'd2t' for its vocabulary of {draft_vocab} tokens"
            )
        ids = chosen
    else:
        if tuple(d2t.shape) != (draft_vocab,) or d2t.is_floating_point():
            raise CheckpointError(where, f"tensor 'd2t' is not {draft_vocab} integers")
        readings = (identity + d2t.long(), d2t.long())
        found = [ids for ids in readings if _fits(ids, chosen, vocab)]
        if not found:
            raise CheckpointError(
                where, "tensor 'd2t' is neither offsets nor ids that agree with the target's ids"
            )
        ids = found[0]
    return None if draft_vocab == vocab and torch.equal(ids, identity) else ids


def _chosen(where: Path, t2d: Tensor, *, vocab: int, draft_vocab: int) -> Tensor:
    if tuple(t2d.shape) != (vocab,):
        raise CheckpointError(
            where, f"tensor 't2d' has shape {list(t2d.shape)}, the target's vocabulary is {vocab}"
        )
    chosen = torch.nonzero(t2d)[:, 0]
    if len(chosen) != draft_vocab:
        raise CheckpointError(
            where, f"tensor 't2d' marks {len(chosen)} tokens, the draft vocabulary is {draft_vocab}"
        )
    return chosen


def _fits(ids: Tensor, chosen: Tensor | None, vocab: int) -> bool:
    if chosen is not None:
        return torch.equal(ids, chosen)
    inside = bool((ids >= 0).all()) and bool((ids < vocab).all())
    return inside and len(torch.unique(ids)) == len(ids)
