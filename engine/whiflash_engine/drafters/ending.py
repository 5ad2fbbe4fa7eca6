"""Where a draft ends by itself: when it is unlikely to pass.

A drafter's distribution says how sure it is, and the largest probability in it is a fair estimate
of the chance that its token passes. Every token of a draft costs the same and brings something
only if all before it pass, so a draft goes on while that chance is worth its price.

Whether a token is left out depends on the distribution that it would come from, never on the
token drawn: else those that are left in would be another selection than the target's law allows.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from whiflash_engine.law import suits_numpy


class Ending:
    """Follows one draft. doubt: see `Proposal`."""

    def __init__(self, floor: float) -> None:
        """floor: the chance that all of the draft passes which each token must leave. The first
        one may leave less: an arm that never drafts would never be found out to have improved."""
        self._floor, self._chance, self._begun = floor, 1.0, False
        self.doubt: float | None = None

    @property
    def over(self) -> bool:
        """Whether no token could be worth it any more, whatever it is."""
        return self._chance < self._floor

    def before(self, logits: Tensor, q: Tensor | None) -> bool:
        """Whether the draft ends before the next token. logits: (1, draft vocabulary) that it
        comes from; q: (1, draft vocabulary), its distribution, None for the likeliest token."""
        if self._floor <= 0.0:
            return False
        chance = _largest(logits, q) ** 2
        self._chance *= chance
        ends = self._begun and self.over
        self._begun = True
        if ends:
            self.doubt = chance
        return ends


def _largest(logits: Tensor, q: Tensor | None) -> float:
    """Probability of the likeliest token."""
    if q is not None:
        return float(q.max())
    if suits_numpy(logits):
        scores = logits.numpy(force=True)
        return 1.0 / float(np.exp(scores - scores.max()).sum())
    return float(logits.softmax(dim=-1).max())
