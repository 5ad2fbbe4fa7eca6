"""What a drafter takes in from the target: some of its features, and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from whiflash_engine.config import require
from whiflash_engine.target.base import Target


class Taps:
    """Picks what a drafter listens to out of all that is tapped for any of them. places: which of
    all of them, `every` in number."""

    def __init__(self, target: Target, wanted: Sequence[int]) -> None:
        """ConfigError if the target does not tap one of the wanted boundaries."""
        for tap in wanted:
            require(tap in target.taps, "tap", tap, f"the target taps {target.taps}")
        self.every = len(target.taps)
        self.places = [target.taps.index(tap) for tap in wanted]
        self._picks = torch.tensor(self.places, device=target.device)

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows of a feature log (n, all taps * hidden) -> (n, wanted taps, hidden)."""
        return rows.view(rows.shape[0], self.every, -1).index_select(1, self._picks)


def embedding(target: Target, weights: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """(n,) ids -> (n, hidden): by the drafter's own `embed_tokens.weight`, else by the target."""
    own = weights.get("embed_tokens.weight")
    return target.embed if own is None else partial(F.embedding, weight=own)


def table(target: Target, weights: Mapping[str, Tensor]) -> Tensor | None:
    """(vocabulary, hidden): the rows that `embedding` gives, if they lie somewhere as they are."""
    return weights.get("embed_tokens.weight", target.embedding)
